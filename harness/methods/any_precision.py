"""Any-precision networks. Yu, Li, Shi, Huang, Hua, AAAI 2021 (arXiv 1911.07346).

One set of weights is trained at several bit-widths at once, with separate norm layers for each bit-width. The network
can then be deployed at any of them.

Equations. A weight w, (O, I) or (O, I, kh, kw), is quantized as in DoReFa (harness/quantization/dorefa.py):

    float:    v = E tanh(w) / max|tanh w|,   E = mean|w|, detached
    b bits:   w_b = E (2 round((2^b - 1) u) / (2^b - 1) - 1),   u = v / (2 E) + 1/2       2^b levels, none of them 0

Rounding has the straight-through gradient. max|tanh w| is not detached, as in the released code. Let b_1 > ... > b_k
be the trained bit-widths (float is the highest) and z_1 ... z_k their logits. The loss is

    CE(z_1, labels) + sum_(j > 1) mean_n -sum_c softmax(sg[z_(j-1)])_nc log softmax(z_j)_nc,

so each bit-width is distilled from the next higher one (in other tasks than classification: the task's loss and its
`distillation`). The training loop computes the term of b_1, `penalty` the
others. A step costs k forward and backward passes and keeps the activations of all k. Dropout and stochastic depth
draw new masks in each pass. The batch-norm statistics of a bit-width come from its own passes only.

Slots: weight_transform maps w to v, so the tracker, float deployment and other methods see v. weight_quantizer rounds
v. Between steps and in evaluation, quantizer and norms are at the target bit.

Activations, with a target such as w4a4: clamped to [0, 1] (released code) and rounded to 2^b levels, b the active
bit-width; at the target bit-width those of the target, and of first and last layer `activations.first_last`. In float
they stay as they are. Inputs with negative values, which the released networks do not have, are clamped to [-1, 1].

Norm layers: batch, layer and group norms. Those of the target bit keep the names and initial values of the float
network's. Those of the other bit-widths start as copies and are stored inside them
(`norm1.other_widths.w2.weight`). Norms that `exclude` matches are shared by all bit-widths. The weights of all stay
float, so `quantizer.norms: quantized` is refused.

Deployment: w_b at each bit-width from 2 to 8. `deploy.scale` has no effect, since there is no learned step or range to
keep. The norms are those of the same bit-width, or of the nearest trained one (on a tie, the higher). "float" deploys
v with the norms of b_1. A deployed copy holds plain norms, so [any_precision, bn_reestimation] can fit statistics to
untrained bit-widths, as the paper does (from memory). In a stack, methods that deploy, or that run forward passes of
their own, come after this one.

Settings: the trained bit-widths are `bits`, the target bit and, with `include_float`, float. The released code has
1, 2, 4, 8 and 32 (float); the harness has no 1 bit. `distillation` has the three variants of its README: recursive,
soft (`highest`) and hard (`labels`). Label smoothing applies to the loop's own pass only. `bits: []` with
`include_float: false` is DoReFa at the target bit.

Sources: the released code (SHI-Labs/Any-Precision-DNNs) for weights, losses, their order and norms, and for tanh in
float as well, where the paper may use w itself.

Deviations: every layer (theirs: the first, the last and shortcuts in float, and some shortcuts' norms shared); with
per-channel granularity E and the maximum are those of a channel; `quantizer.range` has no effect. A pretrained network
does not start as the same function, since E / max|tanh w| rescales the weights of each layer.
"""

from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from harness.core.bits import MAX_BITS, MIN_BITS, Bits, BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint
from harness.methods._inputs import quantize_in_training
from harness.methods._requirements import norm_layers
from harness.methods._switching import Switch, SwitchedClamp, SwitchedDoReFa, SwitchedNorm, collapse, switch_norms
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization import DoReFaQuantizer, DoReFaTransform
from harness.quantization.layers import attach
from harness.quantization.slots import Unfilled


class AnyPrecision(Method):
    """Trains shared weights at several bit-widths, with norms for each and distillation from higher to lower."""

    kind, acts_on = "QAT", "weights, norms"
    activations = "clamped to [0, 1], with negative values to [-1, 1]"
    requires: ClassVar[tuple[str, ...]] = ("norms",)
    takes_layer_points: ClassVar[bool] = False
    deploys_its_own: ClassVar[bool] = True
    changes_activations = True  # norms are those of the point
    refuses_norms = "has norm layers of its own, in float, for each bit-width"

    class Config(MethodConfig):
        name: Literal["any_precision"] = "any_precision"
        bits: tuple[int, ...] = Field(
            (2, 4, 8), description="trained bit-widths, 2 to 8, beside the target bit (released code: 1, 2, 4, 8, 32)"
        )
        include_float: bool = Field(True, description="whether the highest trained precision is float (released code)")
        distillation: Literal["recursive", "highest", "labels"] = Field(
            "recursive",
            description="what teaches a lower bit-width: the next higher one (paper), the highest, or labels",
        )

        @field_validator("bits")
        @classmethod
        def _ascending(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
            """Sort, so that the same bit-widths are the same configuration."""
            if len(set(bits)) < len(bits) or not all(MIN_BITS <= each <= MAX_BITS for each in bits):
                raise ValueError(f"{list(bits)} are not different bit-widths from {MIN_BITS} to {MAX_BITS}")
            return tuple(sorted(bits))

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(bits=(2,))

    @cached_property
    def widths(self) -> tuple[Bits, ...]:
        """All trained bit-widths, the highest first."""
        integers = sorted({*self.config.bits, self.context.bits()}, reverse=True)
        return ("float", *integers) if self.config.include_float else tuple(integers)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        bits, per_channel = self.context.bits(), self.context.quantizer.granularity == "channel"
        switch = Switch(bits)
        norms = [norm for name, norm in norm_layers(model).items() if not self._excluded(name)]
        if not norms:
            raise UserError("methods: 'any_precision' needs norm layers, and exclude matches all of this model's")
        attach(
            model,
            self.context.exclude,
            weight_transform=lambda layer: DoReFaTransform(per_channel),
            weight_quantizer=lambda layer: SwitchedDoReFa(bits, per_channel, switch),
        )
        if point := self.context.point:
            quantize_in_training(
                model, self.context, calibration, lambda each, seen, site: SwitchedClamp(each, point, switch).fit(seen)
            )
        switch_norms(norms, tuple(width for width in self.widths if width != bits), switch)
        self._switch = switch

    def _excluded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.context.exclude)

    def on_step_start(self, step: Step) -> None:
        self._switch.active = self.widths[0]

    def penalty(self, step: Step) -> Tensor | float:
        inputs, targets, teacher, forward = step.inputs, step.targets, step.outputs, step.forward
        assert inputs is not None
        assert targets is not None
        assert teacher is not None
        assert forward is not None
        total: Tensor | float = 0.0
        try:
            for width in self.widths[1:]:
                self._switch.active = width
                outputs, task = forward(inputs), self.context.task
                if self.config.distillation == "labels":
                    total = total + task.loss(outputs, targets)
                else:
                    total = total + task.distillation(outputs, teacher)
                if self.config.distillation == "recursive":
                    teacher = outputs
        finally:
            self._switch.active = self.context.bits()
        return total

    def trained_width(self, bits: Bits) -> Bits:
        """The trained bit-width nearest to `bits` (on a tie, the higher); the highest for "float"."""
        if not isinstance(bits, int):
            return self.widths[0]
        integers = [width for width in self.widths if isinstance(width, int)]
        return min(integers, key=lambda own: (abs(own - bits), -own))

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        if not isinstance(point, BitWidths):
            raise UserError(f"{point}: 'any_precision' deploys a network at one point for all its layers")
        bits = point.in_row
        norms = [layer for layer in model.modules() if isinstance(layer, SwitchedNorm)]
        layers = attach(model, self.context.exclude).values()
        if norms and any(layer.deployed for layer in layers):
            raise UserError("methods: 'any_precision' comes before methods that deploy, since it chooses the norms")
        for layer in layers:
            own = layer.weight_quantizer
            if isinstance(own, SwitchedDoReFa):  # rounding itself is left to what deploys next
                rounding = DoReFaQuantizer(bits, own.per_channel) if isinstance(bits, int) else Unfilled()
                layer.weight_quantizer = rounding
        for norm in norms:
            collapse(norm, self.trained_width(bits))
