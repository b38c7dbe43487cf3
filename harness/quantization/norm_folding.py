"""Layer norms whose outputs have one range per channel, made to share one: the scales move into the next layers.

Scale re-parameterisation of RepQ-ViT (Li, Xiao, Yang, Gu, ICCV 2023, arXiv 2212.08254).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness.quantization.activations import StaticQuantizer
from harness.quantization.layers import QuantLinear
from harness.quantization.norms import QuantNorm
from harness.quantization.quantizer import MaxAbsQuantizer
from harness.quantization.row_ranges import OF_INPUTS, row_ranges
from harness.quantization.slots import Unfilled

#: How far outputs may move by rounding errors, as a part of the largest one.
_TOLERANCE = 1e-3
#: Images of one forward pass, and how many the function is checked on.
_BATCH, _CHECKED = 128, 4


class _Pair(NamedTuple):
    """A layer norm, and the linear layers that take its output and nothing else, by name."""

    norm: str
    layers: tuple[str, ...]


@torch.no_grad()
def fold_norms(model: nn.Module, reference: nn.Module, images: Tensor) -> list[str]:
    """Move the scales of the channels of layer norms' outputs into the layers behind, in place.

    model: with quantizers of activations in its slots. reference: a copy of it in float, which is changed alike.
    images: (N, C, H, W), on which the outputs are seen. Returns the names of the norms.

    A channel c of the output has a range from l_c with steps d_c = range / (2^b - 1). With their means d over channels
    and z, the mean of -l_c / d_c rounded to a code, r = d_c / d and m = l_c / r + z d:

        gamma <- gamma / r,    beta <- beta / r - m,    W <- W r (column by column),    bias <- bias + W_new m

    The network computes the same as before, and all channels range from -z d to (2^b - 1 - z) d, which the inputs'
    quantizer gets as its range. Left alone are norms without a bias or with slots, those whose output goes elsewhere,
    too, and layers with a trained grid, without a bias, or with inputs that are in float, per token, or trained for.
    """
    folded = []
    for pair in _pairs(reference, images[:1]):
        norm = model.get_submodule(pair.norm)
        layers = [model.get_submodule(name) for name in pair.layers]
        if not (_can_change(norm) and all(map(_may_take, layers))):
            continue
        bits = {cast(Any, layer).input_quantizer.bits for layer in layers}
        if len(bits) > 1:
            continue
        change = _Change.of(_outputs(reference, pair.norm, images), bits.pop())
        if _function_stays(reference, pair, change, images[:_CHECKED]):
            change.make(model, pair)
            for layer in layers:
                cast(Any, layer).input_quantizer.set_range(*change.range)
            folded.append(pair.norm)
    return folded


def _can_change(norm: nn.Module) -> bool:
    return not isinstance(norm, QuantNorm) and norm.weight is not None and norm.bias is not None


def _may_take(layer: nn.Module) -> bool:
    """Whether a layer's columns may be scaled: no grid was trained for them, and the range of its inputs is free."""
    if not isinstance(layer, QuantLinear) or layer.deployed or layer.bias is None:
        return False
    free = isinstance(layer.weight_quantizer, Unfilled) or type(layer.weight_quantizer) is MaxAbsQuantizer
    return free and type(layer.input_quantizer) is StaticQuantizer


def _pairs(model: nn.Module, images: Tensor) -> list[_Pair]:
    """The layer norms that are called once, in calling order, and the layers that get the very tensor they give."""
    given: dict[int, tuple[str, Tensor]] = {}
    taken: dict[str, list[str]] = {}
    calls: dict[str, int] = {}

    def norm_hook(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        given[id(output)] = name, output  # kept, so that no other tensor gets its id
        taken.setdefault(name, [])

    def layer_hook(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if id(x) in given:
            taken[given[id(x)][0]].append(name)

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            handles.append(module.register_forward_hook(lambda _, args, output, name=name: norm_hook(name, output)))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: layer_hook(name, args[0])))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    once = {name for name, count in calls.items() if count == 1}
    return [_Pair(norm, tuple(found)) for norm, found in taken.items() if found and {norm, *found} <= once]


def _outputs(model: nn.Module, norm: str, images: Tensor) -> Tensor:
    """The outputs of a norm by channel, (C, T)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(norm).register_forward_hook(
        lambda _, args, output: seen.append(output.flatten(0, -2).T)
    )
    try:
        for batch in images.split(_BATCH):
            model(batch)
    finally:
        handle.remove()
    return torch.cat(seen, dim=1)


@dataclass(frozen=True)
class _Change:
    """r and m of each channel, (C,), and the range that all have afterwards."""

    r: Tensor
    m: Tensor
    range: tuple[float, float]

    @staticmethod
    def of(outputs: Tensor, bits: int) -> "_Change":
        """From the outputs of a norm, (C, T). Channels that hardly vary share the least step."""
        low, high = (each[:, 0] for each in row_ranges(outputs, bits, OF_INPUTS))
        top = 2**bits - 1
        steps = (high - low) / top
        steps = steps.clamp(min=float(steps.mean()) * 1e-3)
        step = float(steps.mean())
        if step == 0:
            return _Change(torch.ones_like(steps), torch.zeros_like(steps), (float(low.min()), float(high.max())))
        zero = float((-low / steps).mean().round().clamp(0, top))
        r = steps / step
        return _Change(r, low / r + zero * step, (-zero * step, (top - zero) * step))

    def make(self, model: nn.Module, pair: _Pair) -> None:
        """In place; no parameter is shared with what had it before."""
        norm: Any = model.get_submodule(pair.norm)
        norm.weight, norm.bias = _fixed(norm.weight / self.r), _fixed(norm.bias / self.r - self.m)
        for layer in _layers(model, pair):
            layer.weight = _fixed(layer.effective_weight() * self.r)
            layer.weight_transform = Unfilled()
            layer.bias = _fixed(layer.bias + layer.weight @ self.m)


def _layers(model: nn.Module, pair: _Pair) -> Iterator[Any]:
    return (model.get_submodule(name) for name in pair.layers)


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def _function_stays(model: nn.Module, pair: _Pair, change: _Change, images: Tensor) -> bool:
    """Make the change if the network still computes the same: it does unless the norm's output goes elsewhere, too."""
    changed: list[Any] = [model.get_submodule(pair.norm), *_layers(model, pair)]
    before, kept = model(images), [(module.weight, module.bias) for module in changed]
    change.make(model, pair)
    if float((model(images) - before).abs().max()) <= _TOLERANCE * float(before.abs().max()):
        return True
    for module, (weight, bias) in zip(changed, kept, strict=True):
        module.weight, module.bias = weight, bias
    return False
