"""Norm layers whose weight is quantized: one class for all of them, whatever their forward pass computes."""

from functools import cache
from typing import Any, ClassVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from harness.core.config_base import QuantizerConfig
from harness.quantization.slots import QuantLayer, Unfilled


def is_norm(layer: nn.Module) -> bool:
    """Whether a module is a norm with a weight of its own: batch, layer, group, RMS norm, or one of timm's.

    timm's have no base class in common, so their name decides.
    """
    named = any("norm" in kind.__name__.lower() for kind in type(layer).__mro__)
    return named and (layer._parameters.get("weight") is not None or is_parametrized(layer, "weight"))


def per_channel(config: QuantizerConfig, layer: nn.Module | None = None) -> bool:
    """Whether a layer's weight has a step for each channel.

    A norm has one weight for each channel, and a weight with a step of its own is not rounded at all: it is always one
    tensor with one step.
    """
    return config.granularity == "channel" and not (layer is not None and is_norm(layer))


class QuantNorm(QuantLayer):
    """A norm layer that computes with its quantized weight; bias and statistics stay float. See `quantized_norm`."""

    SLOTS: ClassVar[tuple[str, ...]] = ("weight_transform", "weight_quantizer")
    GRADIENT_SLOTS: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[type[nn.Module]]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if isinstance(self.weight_transform, Unfilled) and isinstance(self.weight_quantizer, Unfilled):
            return self.plain.forward(self, *inputs, **named)
        # An attribute of the instance hides the parameter of the same name from the forward pass, which reads it.
        self.__dict__["weight"] = self.quantized_weight()
        try:
            return self.plain.forward(self, *inputs, **named)
        finally:
            del self.__dict__["weight"]

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles, since the class is made at run time."""
        return _blank, (self.plain,), self.__dict__


@cache
def quantized_norm(plain: type[nn.Module]) -> type[QuantNorm]:
    """The subclass of a norm layer's class that has slots."""
    return type(f"Quant{plain.__name__}", (QuantNorm, plain), {"plain": plain})


def _blank(plain: type[nn.Module]) -> QuantNorm:
    kind = quantized_norm(plain)  # type: ignore[arg-type]
    return kind.__new__(kind)
