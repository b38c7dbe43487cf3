"""Layers with quantizer slots.

    y = linear(input_quantizer(x), weight_quantizer(weight_transform(weight)), bias)

In the backward pass dX is computed from grad_input_quantizer(dY), and dW and db from grad_weight_quantizer(dY).

Every slot is Identity until a method fills it. `weight` stays the same Parameter under the same name, so float state
dicts load unchanged, and the layer object itself stays the same, so references to it hold.
"""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.core.errors import UserError, unknown
from harness.quantization.gradients import product
from harness.quantization.matching import check_functions, check_keys, check_no_filling, function_of
from harness.quantization.norms import QuantNorm, is_norm, quantized_norm
from harness.quantization.refusals import check_forward, check_type, check_weight
from harness.quantization.slots import GRADIENT_SLOTS, SLOTS, QuantLayer, Slotted, quantized

__all__ = ["GRADIENT_SLOTS", "SLOTS", "QuantConv2d", "QuantLayer", "QuantLinear", "QuantMatMul", "attach"]

#: A layer whose weight is quantized; norms only where it is asked for.
WeightLayer = nn.Linear | nn.Conv2d | nn.LayerNorm


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with slots: (..., I) to (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = quantized(self.input_quantizer, x), self.multiplied_weight()
        return product(self, functional.linear, x, weight, self.bias)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with slots: (N, I, H, W) to (N, O, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = quantized(self.input_quantizer, x), self.multiplied_weight()
        if self._picks_pixels(x):
            down, right = self.stride
            one_by_one = partial(functional.conv2d, groups=self.groups)
            return product(self, one_by_one, x[:, :, ::down, ::right], weight, self.bias)
        return product(self, self._conv_forward, x, weight, self.bias)

    def _picks_pixels(self, x: Tensor) -> bool:
        """Whether to pick the pixels that a strided 1x1 convolution reads first: the same result.

        oneDNN's own way writes past its memory where channels are fewer than a vector has floats: wrong gradients,
        endless waiting or a crash (uxlfoundation/oneDNN issue 6035; seen with torch 2.14).
        """
        few = self.in_channels // self.groups < _VECTOR
        strided = self.kernel_size == (1, 1) and self.stride != (1, 1) and self.padding == (0, 0)
        return few and strided and (not isinstance(x, Tensor) or x.device.type == "cpu")  # a proxy of fx: any device


#: Floats of the widest vectors that CPUs have.
_VECTOR = 16


class QuantMatMul(Slotted):
    """A product of two activations, `y = input_quantizer(a) @ other_quantizer(b)`.

    a: (..., N, K), b: (..., K, M), y (..., N, M). For attention: queries by keys, scores by values. The gradient of a
    is computed from grad_input_quantizer(dY), that of b from grad_other_quantizer(dY).
    """

    GRADIENT_SLOTS: ClassVar[tuple[str, ...]] = ("grad_input_quantizer", "grad_other_quantizer")
    SLOTS: ClassVar[tuple[str, ...]] = ("input_quantizer", "other_quantizer", *GRADIENT_SLOTS)
    input_quantizer: nn.Module
    other_quantizer: nn.Module
    grad_input_quantizer: nn.Module
    grad_other_quantizer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.add_slots()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return product(self, torch.matmul, quantized(self.input_quantizer, a), quantized(self.other_quantizer, b))


_QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}


def _quantized_type(name: str, layer: nn.Module, norms: bool) -> type[QuantLayer] | None:
    """The class that gives a layer slots; None for a layer without weights to quantize. norms: whether theirs count."""
    for plain, with_slots in _QUANTIZED.items():
        if isinstance(layer, plain):
            check_weight(name, layer)
            if isinstance(layer, with_slots):
                return type(layer)
            check_forward(name, layer, plain)
            return with_slots
    if isinstance(layer, QuantNorm):
        return type(layer)
    if not (norms and is_norm(layer)):
        return None
    check_weight(name, layer)
    check_forward(name, layer, type(layer))
    return quantized_norm(type(layer))  # type: ignore[arg-type]


def _slots_of(name: str, layer: nn.Module) -> tuple[str, ...]:
    """The slots that a layer of `weight_layers` has, or will have."""
    kind = _quantized_type(name, layer, norms=True)
    return kind.SLOTS if kind else ()


def glob_patterns(exclude: str | Iterable[str]) -> tuple[str, ...]:
    """What was given as `exclude`, as a tuple: one pattern or several. Raises UserError for anything else."""
    listed = (exclude,) if isinstance(exclude, str) or not isinstance(exclude, Iterable) else tuple(exclude)
    for each in listed:
        if not isinstance(each, str):
            raise UserError(f"exclude: {each!r} is no glob pattern of layer names, such as 'head' or 'blocks.0.*'")
    return listed


def weight_layers(model: nn.Module, exclude: str | Iterable[str] = (), norms: bool = False) -> dict[str, WeightLayer]:
    """The layers whose weights are quantized, by name: linear and convolution layers not excluded.

    exclude: a glob pattern of layer names ("head", "stages.0.*"), or of parameters of other modules, or several. First
    and last layers count, as in the paper. norms: whether norm layers count; those that have slots always do.
    Raises UserError for a pattern that matches none and for layers that cannot be quantized.
    """
    patterns = glob_patterns(exclude)
    found: dict[str, WeightLayer] = {}
    matched: set[str] = set()
    for name, layer in model.named_modules():
        hits = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
        matched |= hits
        if hits:
            continue
        check_type(name, layer)
        if _quantized_type(name, layer, norms) is not None:
            found[name] = layer
    for pattern in patterns:
        if pattern not in matched and not any(fnmatchcase(name, pattern) for name in _parameters_beside(model, found)):
            raise unknown("layer in exclude", pattern, found)
    return found


def _parameters_beside(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The names of the parameters of other modules, which may multiply by them."""
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in layers]


def trainable_layers(model: nn.Module, exclude: str | Iterable[str] = ()) -> dict[str, WeightLayer]:
    """Those of `weight_layers` whose weights are trained, one for each weight: layers that share one count once."""
    found = {id(layer.weight): (name, layer) for name, layer in weight_layers(model, exclude).items()}
    return {name: layer for name, layer in found.values() if layer.weight.requires_grad}


def _separate_biases(model: nn.Module, layers: Iterable[str]) -> None:
    """Have attention of timm (BEiT, EVA, Swin v2) call its `qkv` layer, where it is among these, and not read it."""
    for name, module in model.named_modules():
        if getattr(module, "qkv_bias_separate", None) is False and f"{name}.qkv".removeprefix(".") in layers:
            module.qkv_bias_separate = True


#: An attribute of modules that `attach` left out.
_LEFT_OUT = "_excluded_by_attach"


def excluded_by_attach(model: nn.Module) -> list[str]:
    """The names of modules that an earlier `attach` excluded and no later one gave slots."""
    return [name for name, module in model.named_modules() if getattr(module, _LEFT_OUT, False)]


def give_slots(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, QuantLayer]:
    """Layers of `weight_layers` with their slots, empty unless they had them; the same objects."""
    new = {name for name, layer in layers.items() if not isinstance(layer, QuantLayer)}
    found: dict[str, QuantLayer] = {}
    for name, layer in layers.items():
        if name in new:
            layer.__class__ = _quantized_type(name, layer, norms=True)  # type: ignore[assignment]
            assert isinstance(layer, QuantLayer)
            layer.add_slots()
            layer.__dict__.pop(_LEFT_OUT, None)
        assert isinstance(layer, QuantLayer)
        found[name] = layer
    _separate_biases(model, new)
    return found


#: What fills a slot: a function of the layer, or a mapping of layer names and globs to these.
Filling = Callable[[QuantLayer], nn.Module] | Mapping[str, Callable[[QuantLayer], nn.Module] | None]


def attach(
    model: nn.Module, exclude: str | Iterable[str] = (), norms: bool = False, **slots: Filling
) -> dict[str, QuantLayer]:
    """Give every weight layer its slots, in place, and fill the named ones: one new module per layer.

    norms: whether norm layers get slots, too; those that have them count from then on. They have slots for the weight
    alone, and others are not filled there.

    slots: slot name to a function of the layer, for example
    `attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))`. Or to a mapping of layer names and globs to such
    functions, `{"*": lambda layer: LSQQuantizer(4), "head": lambda layer: LSQQuantizer(8)}`, read as `round_to_nearest`
    reads bits: a name counts before a glob, an earlier glob before a later one, "*" last. The slot stays empty in a
    layer that none matches, or whose entry is None. Transforms are filled first, so that a quantizer is fitted to the
    weight that it will see. Returns the layers by name. What is excluded is remembered: it also stays as it is in
    `round_to_nearest`.
    Attention of timm that reads the weight of its `qkv` layer calls the layer from now on, and adds its bias later.
    Raises UserError as `weight_layers` does, when a slot is taken, for what is no function that gives a module, and for
    a name or glob that matches no layer with that slot.
    """
    check_no_filling({"exclude": exclude, "norms": norms}, SLOTS)
    patterns = glob_patterns(exclude)
    found = weight_layers(model, patterns, norms)
    for slot, filling in slots.items():
        check_functions(slot, filling)
        if slot not in SLOTS:
            raise unknown("slot", slot, SLOTS)
        if isinstance(filling, Mapping):
            check_keys(filling, (name for name, layer in found.items() if slot in _slots_of(name, layer)), slot)
    layers = give_slots(model, found)
    for name, module in model.named_modules():
        if not isinstance(module, QuantLayer) and any(fnmatchcase(name, pattern) for pattern in patterns):
            setattr(module, _LEFT_OUT, True)
    for slot, filling in sorted(slots.items(), key=lambda item: SLOTS.index(item[0])):
        for name, layer in layers.items():
            build = function_of(filling, name) if slot in layer.SLOTS else None
            if build is None:
                continue
            module = build(layer)
            if not isinstance(module, nn.Module):
                raise UserError(f"{slot}: the function gave {type(module).__name__} for layer {name!r}, not a module")
            layer.fill(slot, _moved(module, layer.weight.device))
    return layers


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """A module on a device. Not asked of torch where it is there already: it cannot move fake parameters."""
    tensors = (*module.parameters(), *module.buffers())
    return module if all(each.device == device for each in tensors) else module.to(device)
