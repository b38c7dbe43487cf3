"""Modules that follow one switch: the active bit-width of a network that has several (`any_precision`)."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.core.bits import Bits, BitWidths
from harness.quantization import DoReFaQuantizer
from harness.quantization.activations import fake_quantize
from harness.quantization.shaped_activations import ClampedQuantizer


@dataclass(eq=False)
class Switch:
    """The active bit-width of a model. All its layers share one object, so a copy of the model has one of its own."""

    active: Bits


class SwitchedNorm:
    """A norm layer: itself at the target bit, one of `other_widths` at other bit-widths. See `switched_norm`."""

    plain: ClassVar[type[nn.Module]]
    switch: Switch
    other_widths: nn.ModuleDict

    def forward(self, *inputs: Any, **named: Any) -> Any:
        width = key(self.switch.active)
        if width in self.other_widths:
            return self.other_widths[width].forward(*inputs, **named)  # no hooks: they ran already
        return self.plain.forward(self, *inputs, **named)


def key(bits: Bits) -> str:
    """A bit-width's name in a state dict."""
    return f"w{bits}"


@cache
def switched_norm(plain: type[nn.Module]) -> type[nn.Module]:
    """The switching subclass of a norm layer's class, whatever the `forward` of that class does."""
    return type(f"Switched{plain.__name__}", (SwitchedNorm, plain), {"plain": plain})


def switch_norms(norms: list[nn.Module], others: tuple[Bits, ...], switch: Switch) -> None:
    """Give norm layers a copy of themselves for each further bit-width, in place."""
    copies = {key(bits): deepcopy(norms) for bits in others}  # as one list, so that sharing survives
    for index, norm in enumerate(norms):
        norm.__class__ = switched_norm(type(norm))  # type: ignore[arg-type]
        norm.switch = switch  # type: ignore[assignment]
        norm.other_widths = nn.ModuleDict({name: layers[index] for name, layers in copies.items()})


def collapse(norm: Any, bits: Bits) -> None:
    """Turn a switched norm into a plain layer with the parameters of one bit-width, in place."""
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


class SwitchedClamp(ClampedQuantizer):
    """Fills slots for activations. Rounds at the switch's bit-width; not at all while that is float."""

    def __init__(self, bits: int, target: BitWidths, switch: Switch) -> None:
        super().__init__(bits)
        self.target, self.switch = target, switch

    def forward(self, x: Tensor) -> Tensor:
        active = self.switch.active
        if not isinstance(active, int):
            return x
        # Inputs of the first and last layer have bits of their own.
        own = active == self.target.weights or self.bits != self.target.activations
        return fake_quantize(x, self.grid_at(x, self.bits if own else active), self.slack)
