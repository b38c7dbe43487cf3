"""The interface of a method: one file with one `Method` subclass, whose hooks do nothing by default.

method.prepare(model, calibration)         once, before the optimizer exists
method.prepared(model)                     once, after all methods of the stack have prepared
for each step:
    method.on_step_start(step)
    loss = task_loss + method.penalty(step)
    loss.backward()
    method.after_backward(step)            # gradients exist: closed forms, masks
    clip the gradient; optimizer.step()
    method.after_step(step)                # weights moved: restore, project
    tracker.update()
method.deploy(copy of the model, point, calibration)  at each evaluation and deployment point
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.bits import BitWidths, PlainPoint, ScalePolicy
from harness.core.config_base import ActivationsConfig, KeyValueConfig, QuantizerConfig, StrictConfig
from harness.core.layer_points import AnyPoint
from harness.quantization import Observed, WeightQuantizer, make_quantizer, observe
from harness.quantization.layers import QuantLayer
from harness.tasks.base import Task
from harness.tasks.base import find as find_task


class MethodConfig(StrictConfig):
    """The settings of a method; each method nests its own subclass, named Config."""

    name: str = Field(description="the method's file name without .py")


@dataclass(frozen=True)
class Context:
    """What a method gets to know about its run.

    target_bit: what the network is trained for, 4 or "w4a4" (`point`: in parts); None for plain float training.
    activations, kv: how activations, and keys and values, are rounded where the point has bits for them. exclude: layer
    globs left in float. seed: of the method's own random draws (torch.Generator().manual_seed(...)). fused: whether
    native passes over the weights (harness/kernels) may replace plain operations, where there are any. task: the run's;
    a method takes losses from it (`loss`, `distillation`, `divergence`).
    """

    target_bit: PlainPoint | None = None
    total_steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    kv: KeyValueConfig = field(default_factory=KeyValueConfig)
    scale: ScalePolicy = "recalibrate"
    exclude: tuple[str, ...] = ()
    fused: bool = True
    task: Task = field(default_factory=partial(find_task, "classification"))

    @property
    def point(self) -> BitWidths | None:
        """The target in parts; None for plain float training."""
        return None if self.target_bit is None else BitWidths.of(self.target_bit)

    def bits(self) -> int:
        """The weights' bits of the target, for a method that needs one (`Method.needs_target_bit`)."""
        point = self.point
        assert point is not None, "the configuration refuses a method without its target_bit"
        assert point.weights is not None, "a target has bits for weights"
        return point.weights


@dataclass
class Step:
    """One training step: its index from 0, the number of steps, the model, the batch and its results.

    inputs, targets: as the task has them (classification: (B, C, H, W), augmented and normalised; (B,) int64); outputs:
    the network's, fp32 (classification: logits (B, classes)), and task_loss, a scalar, both with their graph. All are
    set when `penalty` is called. forward: another forward pass of the model in its current state, from inputs to fp32
    outputs, in the precision of the run and never compiled.
    """

    index: int
    total: int
    model: nn.Module
    inputs: Tensor | None = None
    targets: Tensor | None = None
    outputs: Tensor | None = None
    task_loss: Tensor | None = None
    forward: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Calibration:
    """Batches of training images without augmentation; every reading gives the same ones.

    draw(k) gives batch k: inputs (images: (N, C, H, W) float32, normalised) and targets of the task, on the device.
    different: how many batches there are before they repeat; None: not known.
    """

    draw: Callable[[int], tuple[Tensor, Tensor]]
    different: int | None = None

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` batches."""
        return (self.draw(index) for index in range(count))

    def inputs(self, count: int) -> Iterator[Tensor]:
        """The inputs of the first `count` batches, or of all there are: none comes twice."""
        return (inputs for inputs, _ in self.batches(min(count, self.different or count)))

    def images(self, count: int) -> Tensor:
        """The first `count` inputs, or all there are, (N, C, H, W)."""
        found, missing = [], count
        for inputs in self.inputs(count):
            found.append(inputs[:missing])
            missing -= len(found[-1])
            if not missing:
                break
        return torch.cat(found)


class Method:
    """A way of training or deploying a network. Subclasses nest a `Config` and override hooks.

    kind, acts_on: a word each for the list of methods (`python -m harness.methods`).
    activations: what rounds activations if the target has bits for them: "calibrated" (the default quantizer, at
    deployment alone), or a word for quantizers of the method's own; "" if it cannot have such a target.
    needs_target_bit: False if the method can be used without a target bit.
    needs_double_backward: True when `penalty` differentiates gradients; the forward pass then avoids fused attention.
    selection_start: the fraction of training before which no epoch counts as best (staged methods).
    The last two may depend on the configuration: an instance sets its own.
    replaces_layers: True if `prepare` replaces layers. Methods before it in a stack would keep references to the old
    ones, so it must come before all methods that do not replace layers.
    requires: features that a model must have, from FEATURES in harness/methods/_requirements.py; a run or a cell with
    another model is refused.
    changes_activations: True if `deploy` changes what layers get as inputs (statistics of norms, weights fitted to a
    point); ranges of activations are then observed anew after it.
    refuses_norms: why it does not go with `quantizer.norms: quantized`, in words that follow "which"; "" if it does.
    Norm layers are then among the layers that `attach` gives, with weights of shape (C,) and one step each.
    deploys_its_own: True if `deploy` does nothing but for networks that the method trained.
    takes_layer_points: False if `deploy` needs one point for the whole network; a run with points by layer is refused.
    notes: what `deployments` of the record says of a deployment beside its time and memory; `deploy` sets them.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    kind: ClassVar[str] = ""
    acts_on: ClassVar[str] = ""
    activations: ClassVar[str] = "calibrated"
    needs_target_bit: ClassVar[bool] = True
    replaces_layers: ClassVar[bool] = False
    needs_double_backward: bool = False
    selection_start: float = 0.0
    requires: ClassVar[tuple[str, ...]] = ()
    changes_activations: bool = False
    refuses_norms: ClassVar[str] = "acts on the weights of linear and convolution layers alone"
    takes_layer_points: ClassVar[bool] = True
    deploys_its_own: ClassVar[bool] = False
    notes: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: Any, context: Context) -> None:
        self.config, self.context = config, context

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        """Settings with which four steps show the method's effect; used by the conformance tests."""
        named = cls.Config.model_fields["name"]
        own = cls.__module__.rpartition(".")[2] if named.is_required() else named.default
        return cls.Config(name=own)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        """Whether `deploy` does something at a point. Named in `deploy.methods`, it gives no rows at others."""
        return True

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        """Fill slots, replace layers, set initial scales. Runs once, before the optimizer exists."""

    def prepared(self, model: nn.Module) -> None:
        """Check the model after the whole stack has prepared. Raises SlotTakenError for methods that do not combine."""

    def check(self, model: nn.Module) -> None:
        """Raise UserError for a network that `deploy` cannot serve; before training, if the record has rows of it."""

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        """Optimizer options of one parameter (`lr`, as a factor of the run's, and `weight_decay`); {} for the run's."""
        return {}

    def on_step_start(self, step: Step) -> None:
        """Anneal, freeze, schedule."""

    def penalty(self, step: Step) -> Tensor | float:
        """A scalar added to the task loss; `step.task_loss` is set, with its graph."""
        return 0.0

    def after_backward(self, step: Step) -> Tensor | float:
        """Change gradients. Returns the value of a penalty whose gradient it added, for the log."""
        return 0.0

    def after_step(self, step: Step) -> None:
        """Restore or project weights that the optimizer moved."""

    def deploy(
        self, model: nn.Module, point: AnyPoint, calibration: Calibration
    ) -> Mapping[str, BitWidths | PlainPoint] | None:
        """Turn `model`, a copy, into the network deployed at a point, which may be one by layer (LayerPoints).

        Layers that it leaves alone are rounded to nearest afterwards, and activations are quantized after all weights
        are (`round_to_nearest`): at the point or, for a method that chooses bits for each layer, at the points that it
        returns, by layer name or glob. Methods later in the stack get these in place of the point, and the record's
        rows hold them (`allocated`). A method that rounds weights itself calls `round_weights`. Quantizers of
        activations that were trained are in their slots meanwhile, except at points whose activations are float.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs and the model's state dict lacks; tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""

    def metrics(self) -> dict[str, float]:
        """The method's own figures at the end of an epoch, by metric name."""
        return {}


def default_quantizer(layer: QuantLayer, context: Context) -> WeightQuantizer:
    """The run's default quantizer at its target bit, fitted to a layer's effective weight; fills nothing."""
    quantizer = make_quantizer(context.quantizer, context.bits(), fused=context.fused, layer=layer)
    with torch.no_grad():
        return quantizer.to(layer.weight.device).fit(layer.effective_weight())


def observed_inputs(model: nn.Module, calibration: Calibration, context: Context) -> dict[str, Observed]:
    """What the inputs of layers and the operands of attention are on the run's calibration batches, in float."""
    config = context.activations
    return observe(model, calibration.inputs(config.calibration_batches), context.exclude, config.attention)
