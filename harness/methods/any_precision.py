"""Any-precision networks. Yu, Li, Shi, Huang, Hua, AAAI 2021 (arXiv 1911.07346).

One set of weights trains at several bit-widths jointly, with one set of norm layers per bit-width, so that a network
can be deployed at any of them. A weight w, (O, I) or (O, I, kh, kw), is DoReFa's (harness/quantization/dorefa.py):

    v = E tanh(w) / max|tanh w|,   E = mean|w|, a constant for the gradient           in float
    w_b = E (2 round((2^b - 1) u) / (2^b - 1) - 1),   u = v / (2 E) + 1/2             at b bits: 2^b levels, no zero

rounded straight through; max|tanh w| is part of the gradient, as in the released code. The bit-widths b_1 > ... > b_k
(float first), whose logits are z_1 ... z_k, train on

    CE(z_1, labels) + sum_(j > 1) mean_n -sum_c softmax(sg[z_(j-1)])_nc log softmax(z_j)_nc,

each one taught by the next higher one. The loop's own pass is b_1; the others follow in `penalty`. So a step costs k
forward and backward passes and holds the activations of all; dropout and stochastic depth draw anew in each, and a
batch norm's statistics at b come from the passes at b alone.

Slots: weight_transform holds w -> v, so v is what the tracker, float deployment and other methods see, and
weight_quantizer the rounding of v. Between steps and in evaluation both it and the norms are at the target bit, whose
norms keep the names and first values of the float network's; the others, copies of these, hang below them
(`norm1.other_widths.w2.weight`). Norm layers are batch, layer and group norms; `exclude` leaves some shared, too.

Deployment: at each bit-width 2 to 8, w_b, whatever `deploy.scale` says (nothing is learned that it could keep), with
the norms of that bit-width, or of the nearest one trained (of two, the higher); "float" deploys v and the norms of
b_1. Copies hold plain norms, so [any_precision, bn_reestimation] can fit statistics to untrained bit-widths, as the
paper does [M]; methods that deploy or run passes of their own come after this one.

Read in the released code (SHI-Labs/Any-Precision-DNNs): weights, losses, order, norms, and float behind the tanh, too
(the paper may have had w itself). Defaults: its bit-widths 1, 2, 4, 8, 32, less the 1 that the harness does not have.
`distillation` has the three variants of its README: recursive, soft, hard; label smoothing is for the loop's own pass
only. With `bits: []` and no float this is DoReFa at the target bit. Deviations: weights only (theirs rounds
activations too); every layer, where theirs leaves the first, the last and shortcuts in float and some shortcuts' norms
shared; per channel E and the maximum are a channel's; `quantizer.range` says nothing here. Since E / max|tanh w| is a
factor on all of a layer's weights, a pretrained network does not begin as the function it was.
"""

from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from harness.core.bits import MAX_BITS, MIN_BITS, Bits
from harness.core.errors import UserError
from harness.methods._requirements import norm_layers
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization import DoReFaQuantizer, DoReFaTransform
from harness.quantization.deploy import set_deployed
from harness.quantization.layers import attach


@dataclass(eq=False)
class Switch:
    """The bit-width that a model computes at: one object for all its layers, which copies of the model copy once."""

    active: Bits


class SwitchedNorm:
    """What a norm layer becomes: itself at the target bit, one of `other_widths` at others. See `switched_norm`."""

    plain: ClassVar[type[nn.Module]]
    switch: Switch
    other_widths: nn.ModuleDict

    def forward(self, *inputs: Any, **named: Any) -> Any:
        width = key(self.switch.active)
        if width in self.other_widths:
            return self.other_widths[width].forward(*inputs, **named)  # past hooks: copies would call them twice
        return self.plain.forward(self, *inputs, **named)


def key(bits: Bits) -> str:
    """A bit-width's name in a state dict."""
    return f"w{bits}"


@cache
def switched_norm(plain: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a norm layer's own class, whatever that does in its forward, that switches."""
    return type(f"Switched{plain.__name__}", (SwitchedNorm, plain), {"plain": plain})


def switch_norms(norms: list[nn.Module], others: tuple[Bits, ...], switch: Switch) -> None:
    """Give norm layers a copy of themselves for each further bit-width, in place."""
    copies = {key(bits): deepcopy(norms) for bits in others}  # a list at once: what they share, copies share too
    for index, norm in enumerate(norms):
        norm.__class__ = switched_norm(type(norm))  # type: ignore[arg-type]
        norm.switch = switch  # type: ignore[assignment]
        norm.other_widths = nn.ModuleDict({name: layers[index] for name, layers in copies.items()})


def collapse(norm: Any, bits: Bits) -> None:
    """Make a switched norm the plain layer that it is at a bit-width, in place."""
    chosen = dict(norm.other_widths.items()).get(key(bits))
    del norm.other_widths, norm.switch
    norm.__class__ = norm.plain
    if chosen is not None:
        norm.load_state_dict(chosen.state_dict())


class SwitchedDoReFa(DoReFaQuantizer):
    """Fills weight_quantizer. Rounds at the switch's bit-width; codes and distances are always the target bit's."""

    def __init__(self, bits: int, per_channel: bool, switch: Switch) -> None:
        super().__init__(bits, per_channel)
        self.switch = switch

    def forward(self, weight: Tensor) -> Tensor:
        active = self.switch.active
        return self.at(weight, active) if isinstance(active, int) else weight


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the teacher's softmax, mean over the batch; both (B, classes); no gradient to the teacher."""
    return functional.cross_entropy(logits, teacher.detach().softmax(dim=1))


class AnyPrecision(Method):
    """Trains shared weights at several bit-widths, with norms for each and distillation from higher to lower."""

    kind, acts_on = "QAT", "weights, norms"
    requires: ClassVar[tuple[str, ...]] = ("norms",)

    class Config(MethodConfig):
        name: Literal["any_precision"] = "any_precision"
        bits: tuple[int, ...] = Field(
            (2, 4, 8), description="trained bit-widths, 2 to 8, beside the target bit (released code: 1, 2, 4, 8, 32)"
        )
        include_float: bool = Field(True, description="whether the highest trained precision is float (released code)")
        distillation: Literal["recursive", "highest", "labels"] = Field(
            "recursive", description="who teaches a lower bit-width: the next higher one (paper), b_1, or the labels"
        )

        @field_validator("bits")
        @classmethod
        def _ascending(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
            """In one order, so that a set of bit-widths is one configuration."""
            if len(set(bits)) < len(bits) or not all(MIN_BITS <= each <= MAX_BITS for each in bits):
                raise ValueError(f"{list(bits)} are not different bit-widths from {MIN_BITS} to {MAX_BITS}")
            return tuple(sorted(bits))

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(bits=(2,))

    @cached_property
    def widths(self) -> tuple[Bits, ...]:
        """What is trained, the highest first."""
        integers = sorted({*self.config.bits, self.context.bits()}, reverse=True)
        return ("float", *integers) if self.config.include_float else tuple(integers)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        bits, per_channel = self.context.bits(), self.context.quantizer.granularity == "channel"
        switch = Switch(bits)
        norms = [norm for name, norm in norm_layers(model).items() if not self._excluded(name)]
        if not norms:
            raise UserError("methods: 'any_precision' gives each bit-width its own norms, and exclude leaves it none")
        attach(
            model,
            self.context.exclude,
            weight_transform=lambda layer: DoReFaTransform(per_channel),
            weight_quantizer=lambda layer: SwitchedDoReFa(bits, per_channel, switch),
        )
        switch_norms(norms, tuple(width for width in self.widths if width != bits), switch)
        self._switch = switch

    def _excluded(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.context.exclude)

    def on_step_start(self, step: Step) -> None:
        self._switch.active = self.widths[0]

    def penalty(self, step: Step) -> Tensor | float:
        inputs, labels, teacher, forward = step.inputs, step.labels, step.logits, step.forward
        assert inputs is not None
        assert labels is not None
        assert teacher is not None
        assert forward is not None
        total: Tensor | float = 0.0
        try:
            for width in self.widths[1:]:
                self._switch.active = width
                logits = forward(inputs)
                if self.config.distillation == "labels":
                    total = total + functional.cross_entropy(logits, labels)
                else:
                    total = total + soft_cross_entropy(logits, teacher)
                if self.config.distillation == "recursive":
                    teacher = logits
        finally:
            self._switch.active = self.context.bits()
        return total

    def trained_width(self, bits: Bits) -> Bits:
        """The trained bit-width nearest to another one, of two the higher; the highest for "float"."""
        if not isinstance(bits, int):
            return self.widths[0]
        integers = [width for width in self.widths if isinstance(width, int)]
        return min(integers, key=lambda own: (abs(own - bits), -own))

    def deploy(self, model: nn.Module, bits: Bits, calibration: Calibration) -> None:
        norms = [layer for layer in model.modules() if isinstance(layer, SwitchedNorm)]
        layers = attach(model, self.context.exclude).values()
        if norms and any(layer.deployed for layer in layers):
            raise UserError("methods: 'any_precision' comes before methods that deploy, since it chooses the norms")
        for layer in layers:
            own = layer.weight_quantizer
            if isinstance(own, SwitchedDoReFa):
                with torch.no_grad():
                    weight = layer.effective_weight()
                    if isinstance(bits, int):
                        weight = DoReFaQuantizer(bits, own.per_channel)(weight)
                    set_deployed(layer, weight)
        for norm in norms:
            collapse(norm, self.trained_width(bits))
