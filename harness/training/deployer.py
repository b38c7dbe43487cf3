"""A network deployed by a method at a point, on a copy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from harness.core.bits import BitWidths
from harness.core.layer_points import AnyPoint, LayerPoints, Written, point_of
from harness.methods import build_stack, find
from harness.methods.base import Calibration, Context, Method, observed_inputs
from harness.quantization import ActivationQuantizer, Observed, observe
from harness.quantization.bounds import project
from harness.quantization.deploy import round_rest
from harness.quantization.inputs import float_inputs
from harness.quantization.observing import LazyObservations, input_sites
from harness.quantization.slots import copy_of


@dataclass(frozen=True, kw_only=True)
class Deployer:
    """Deploys networks that were trained with `methods`, which deploy them first, and then the one that is asked for.

    settings: name and settings of a method, for a deploy that is another name or where they are not its defaults.
    """

    methods: Sequence[Method]
    context: Context
    calibration: Calibration
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def _entry(self, deploy: str) -> Mapping[str, Any]:
        return self.settings.get(deploy, {"name": deploy})

    def method(self, deploy: str) -> type[Method]:
        """The method of a deploy that is not "rtn"."""
        return find(str(self._entry(deploy)["name"]))

    def observes(self, deploy: str, point: AnyPoint) -> bool:
        """Whether a case makes use of what `observed` gives for the model itself."""
        changed = any(method.changes_activations for method in self.methods)
        return (
            point.has_activations and not changed and (deploy == "rtn" or not self.method(deploy).changes_activations)
        )

    def observed(self, model: nn.Module) -> Mapping[str, Observed]:
        """What comes to its layers on the calibration batches, in float.

        Two images give their order, which is enough where ranges are per token, or were trained for the point. The rest
        is looked at when it is asked for.
        """
        config, exclude = self.context.activations, self.context.exclude
        look = partial(observed_inputs, model, self.calibration, self.context)
        trained = any(isinstance(site.held, ActivationQuantizer) for site in input_sites(model).values())
        if not trained and config.granularity != "token":
            return look()
        two = [inputs[:2] for inputs in self.calibration.inputs(1)]
        return LazyObservations(observe(model, two, exclude, config.attention), look)

    def deployed(self, model: nn.Module, at: Written, deploy: str = "rtn") -> nn.Module:
        """A copy of the model as deployed at a point: in evaluation mode, weights and activations on the grid."""
        return self.deployment(model, point_of(at), deploy)[0]

    def deployment(
        self,
        model: nn.Module,
        point: AnyPoint,
        deploy: str,
        observed: Callable[[], Mapping[str, Observed]] | None = None,
    ) -> tuple[nn.Module, LayerPoints | None, dict[str, Any]]:
        """The copy, the points that a method chose for its layers, and what methods note.

        observed: gives what `self.observed(model)` does, if it has been asked for already.
        """
        copy, chosen = copy_of(model).eval(), None
        project(copy)  # of a training loop of one's own, an optimizer's last step may have left them
        notes: dict[str, Any] = {}
        context = self.context
        float_inputs(copy, point, context.exclude)  # before methods deploy, which may run the network
        extra = [] if deploy == "rtn" else build_stack([dict(self._entry(deploy))], context)
        stack = (*self.methods, *extra)
        for method in stack:
            layers = method.deploy(copy, chosen or point, self.calibration)
            notes |= method.notes
            if layers is not None:
                chosen = LayerPoints(point.key, tuple((glob, BitWidths.of(each)) for glob, each in layers.items()))
        seen: Mapping[str, Observed] = {}
        if (chosen or point).has_activations:
            changed = any(method.changes_activations for method in stack)
            seen = self.observed(copy) if changed or observed is None else observed()
        how = (context.scale, context.quantizer, context.exclude, context.activations)
        round_rest(copy, chosen or point, *how, seen, context.kv)
        return copy, chosen, notes
