"""`harness.deploy`: a network of one's own, deployed by a method of the harness."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from harness.core import registry
from harness.core.bits import BitWidths, ScalePolicy
from harness.core.config_base import ActivationsConfig, KeyValueConfig, QuantizerConfig, section
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints, point_of
from harness.core.seeding import sub_seed
from harness.methods import build_stack, find
from harness.methods._requirements import lacking
from harness.methods.base import Calibration, Context
from harness.quantization.batches import check_batches
from harness.quantization.key_value_points import key_value_bits
from harness.quantization.layers import glob_patterns
from harness.quantization.wanted import TRAINED, WantedBits, check_not_deployed, checked, checked_layers
from harness.tasks.base import find as find_task
from harness.training.components import component
from harness.training.deployer import Deployer
from harness.training.method_checks import check_serves

#: What methods that round weights act on; others, such as bn_reestimation, may follow a deployment.
_ROUNDED = ("weights", "bits of layers")
_COMMAND = "python -m harness.evaluate RUN --deploy"


def deploy(
    model: nn.Module,
    bits: WantedBits | LayerPoints | Mapping[str, WantedBits],
    method: str | Mapping[str, Any],
    calibration: Iterable[Tensor] | None = None,
    scale: ScalePolicy = "recalibrate",
    quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    activations: ActivationsConfig | Mapping[str, Any] | None = None,
    kv: KeyValueConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
    task: str = "classification",
    **settings: Any,
) -> nn.Module:
    """A copy of a network, deployed by a method at a point as `harness.evaluate RUN --deploy METHOD` deploys a run's.

    model: any network, with slots (`attach`) or without; it stays as it is. method: a name ("gptq", "adaround", "erq",
    ...; "rtn" is round-to-nearest), whose `settings` follow by name (`act_order=True`), or both as a mapping, `{"name":
    "ohq", "bits": [2, 4, 8]}`; `python -m harness.methods NAME` lists them. calibration: batches of inputs, one tensor
    (N, ...) each, on the network's device; all are kept, and the method's settings say how many inputs it uses. seed:
    of its random draws. task: what the network does, for methods that compare outputs. All else is as for
    `round_to_nearest`, in whose bits a mapping has no "trained": a layer that none matches is that.

    Returns the copy, in evaluation mode. Raises UserError, before anything is computed, for an unknown method or
    setting, for a point that the method does not serve and for a network that it cannot deploy, and where the method
    asks for what is not there: calibration, or labels (those methods act on runs alone).
    """
    entry = {**({"name": method} if isinstance(method, str) else method), **settings}
    name = entry["name"] = registry.check_deploy(str(entry.get("name")))
    context = Context(
        seed=sub_seed(seed, "method"),
        quantizer=section(quantizer, QuantizerConfig, "quantizer"),
        activations=section(activations, ActivationsConfig, "activations"),
        kv=section(kv, KeyValueConfig, "kv"),
        scale=scale,
        exclude=glob_patterns(exclude),
        task=find_task(task),
    )
    point = _point(bits)
    layers, wanted = checked_layers(model, _written(point), context.exclude, context.quantizer.quantizes_norms)
    if name == "rtn" or any(word in find(name).acts_on for word in _ROUNDED):
        check_not_deployed(model, layers, wanted)
    key_value_bits(model, _written(point), context.exclude)
    _check_method(model, entry, point, context)
    inputs = _calibration(name, calibration)
    deployer = Deployer(methods=(), context=context, calibration=inputs, settings={name: entry})
    return deployer.deployment(model, point, name)[0]


def _point(bits: Any) -> AnyPoint:
    if bits is None or bits == TRAINED:
        return LayerPoints(TRAINED, ())
    if isinstance(bits, Mapping | LayerPoints):
        try:
            return point_of(bits)
        except UserError as error:
            raise UserError(f"bits: {error}") from None
    return checked(bits) or BitWidths()


def _written(point: AnyPoint) -> Any:
    return point.mapping if isinstance(point, LayerPoints) else point


def _check_method(model: nn.Module, entry: Mapping[str, Any], point: AnyPoint, context: Context) -> None:
    """Refuse settings, points and networks that a method does not take. Raises UserError."""
    name = entry["name"]
    if name == "rtn":
        if further := sorted({*entry} - {"name"}):
            raise UserError(f"rtn (round-to-nearest) has no settings, got {', '.join(further)}")
        return
    component("method", entry)
    kind, shown = find(name), registry.shown(name)
    if kind.deploys_its_own:
        raise UserError(f"method {shown!r} deploys networks that it trained: it acts on runs ({_COMMAND} {shown})")
    check_serves("bits", name, point, "give")
    if isinstance(point, LayerPoints) and not kind.takes_layer_points:
        raise UserError(f"bits: {shown!r} deploys a network at one point for all its layers")
    for words in lacking(model, kind.requires):
        raise UserError(f"method {shown!r} needs {words}, and this network has none")
    for method in build_stack([dict(entry)], context):
        method.check(model)


def _calibration(method: str, given: Iterable[Tensor] | None) -> Calibration:
    """Batches as methods read them; what there is none of is refused when a method asks for it."""
    own = registry.shown(method)
    if given is None:
        return Calibration(lambda _: _refuse(f"calibration: {own} needs batches of inputs: give calibration=[x, ...]"))
    check_batches(given)
    batches = list(given)
    if not batches:
        raise UserError("calibration: there is no batch of inputs")
    for number, each in enumerate(batches, start=1):
        if not isinstance(each, Tensor) or not each.dim():
            raise UserError(f"calibration: batch {number} is a {type(each).__name__}; give one tensor (N, ...)")
    labels: Any = _NoLabels(own)
    return Calibration(lambda index: (batches[index % len(batches)], labels), len(batches))


class _NoLabels:
    """In place of a batch's labels."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __getitem__(self, index: Any) -> NoReturn:
        _refuse(
            f"method {self.method!r} needs labels here, and calibration has inputs alone: it acts on runs "
            f"({_COMMAND} {self.method})"
        )


def _refuse(why: str) -> NoReturn:
    raise UserError(why)
