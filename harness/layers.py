"""Layers with quantizer slots.

    y = grad_quantizer(linear(input_quantizer(x), weight_quantizer(weight_transform(weight)), bias))

Every slot is Identity until a method fills it. `weight` stays the same Parameter under the same name, so float
state dicts load unchanged, and the layer object itself stays the same, so references to it hold.
"""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import UserError, unknown

SLOTS = ("weight_transform", "weight_quantizer", "input_quantizer", "grad_quantizer")


class QuantLayer(nn.Module):
    """What QuantLinear and QuantConv2d share: four slots, and quantizer arithmetic outside autocast."""

    SLOTS: ClassVar[tuple[str, ...]] = SLOTS
    weight: nn.Parameter
    weight_transform: nn.Module
    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    grad_quantizer: nn.Module

    def add_slots(self) -> None:
        """Give the layer its slots, all Identity."""
        for slot in self.SLOTS:
            setattr(self, slot, nn.Identity())

    def fill(self, slot: str, module: nn.Module) -> None:
        """Put a module into a slot. Raises UserError when the slot is unknown or taken."""
        if slot not in self.SLOTS:
            raise unknown("slot", slot, self.SLOTS)
        present = getattr(self, slot)
        if not isinstance(present, nn.Identity):
            raise UserError(
                f"slot {slot} already holds {type(present).__name__}, so {type(module).__name__} cannot have it: "
                "two methods of the stack clash"
            )
        setattr(self, slot, module.to(self.weight.device) if hasattr(self, "weight") else module)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer uses it, fp32, same shape."""
        with torch.autocast(self.weight.device.type, enabled=False):
            quantized: Tensor = self.weight_quantizer(self.weight_transform(self.weight))
        return quantized

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the layer uses it, same shape; fp32 arithmetic when the slot is filled."""
        if isinstance(self.input_quantizer, nn.Identity):
            return x
        with torch.autocast(x.device.type, enabled=False):
            quantized: Tensor = self.input_quantizer(x.float())
        return quantized


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with slots: (..., I) to (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(self.quantized_input(x), self.quantized_weight(), self.bias)
        return self.grad_quantizer(y)  # type: ignore[no-any-return]


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with slots: (N, I, H, W) to (N, O, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv_forward(self.quantized_input(x), self.quantized_weight(), self.bias)
        return self.grad_quantizer(y)  # type: ignore[no-any-return]


class QuantMatMul(nn.Module):
    """A product of two activations, `grad_quantizer(input_quantizer(a) @ other_quantizer(b))`.

    a: (..., N, K), b: (..., K, M), result (..., N, M). For attention: queries by keys, scores by values.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("input_quantizer", "other_quantizer", "grad_quantizer")
    add_slots = QuantLayer.add_slots
    fill = QuantLayer.fill

    def __init__(self) -> None:
        super().__init__()
        self.add_slots()  # type: ignore[arg-type]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.grad_quantizer(self.input_quantizer(a) @ self.other_quantizer(b))  # type: ignore[no-any-return]


_QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}


def _quantized_type(name: str, layer: nn.Module) -> type[QuantLayer] | None:
    """The class that gives a layer slots; None for a layer without weights to quantize."""
    for plain, quantized in _QUANTIZED.items():
        if isinstance(layer, quantized):
            return type(layer)  # type: ignore[return-value]
        if isinstance(layer, plain):
            if type(layer).forward is not plain.forward:
                raise UserError(
                    f"layer {name!r}: {type(layer).__name__} computes its own forward, which a quantizer cannot enter; "
                    "exclude it by name"
                )
            return quantized
    return None


def weight_layers(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers whose weights are quantized, by name: linear and convolution layers not excluded.

    exclude: glob patterns of layer names ("head", "stages.0.*"). First and last layers count, as in the
    paper. Raises UserError for a pattern that matches no layer and for layers that cannot be quantized.
    """
    patterns = tuple(exclude)
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    matched: set[str] = set()
    for name, layer in model.named_modules():
        hits = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
        matched |= hits
        if hits:
            continue
        if isinstance(layer, nn.MultiheadAttention):
            raise UserError(
                f"layer {name!r}: torch's MultiheadAttention reads its weights past any layer; exclude '{name}*'"
            )
        if _quantized_type(name, layer) is not None:
            found[name] = layer  # type: ignore[assignment]
    for pattern in patterns:
        if pattern not in matched:
            raise unknown("layer in exclude", pattern, found)
    return found


def attach(
    model: nn.Module, exclude: Iterable[str] = (), **slots: Callable[[nn.Module], nn.Module]
) -> dict[str, QuantLayer]:
    """Give every weight layer its slots, in place, and fill the named ones: one new module per layer.

    slots: slot name to a function of the layer, for example
    `attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))`. Returns the layers by name.
    Raises UserError as `weight_layers` does, and when a slot is taken.
    """
    layers: dict[str, QuantLayer] = {}
    for name, layer in weight_layers(model, exclude).items():
        quantized = _quantized_type(name, layer)
        if quantized is not None and not isinstance(layer, QuantLayer):
            layer.__class__ = quantized
            layer.add_slots()  # type: ignore[operator]
        layers[name] = layer  # type: ignore[assignment]
    for slot, build in slots.items():
        for layer in layers.values():
            layer.fill(slot, build(layer))
    return layers
