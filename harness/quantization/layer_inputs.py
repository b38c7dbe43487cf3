"""What the weights of a layer multiply when a network runs on given images; for methods that reconstruct its output."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.quantization.layers import QuantConv2d, QuantLayer
from harness.quantization.slots import quantized

#: Numbers that the columns of one convolution input may have at a time: 256 MiB in fp32.
_LARGEST = 2**26
#: Images of one forward pass.
BATCH = 128


def order_of_calls(model: nn.Module, layers: Mapping[str, QuantLayer], images: Tensor) -> dict[str, int]:
    """The layers that a network calls, in the order of the first call, and how often it calls each.

    images: (N, C, H, W); the model runs as it is, without gradients.
    """
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def inputs_of(
    model: nn.Module, layer: QuantLayer, images: Tensor, calls: int = 1, through: nn.Module | None = None
) -> Iterator[Tensor]:
    """What a layer gets, after its input_quantizer, batch by batch of the images; the network stops behind it.

    calls: how often the network calls the layer in one pass; as many inputs for each batch. through: what the inputs
    go through in place of the input_quantizer.
    """
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(quantized(layer.input_quantizer if through is None else through, inputs[0]))
        if len(seen) == calls:
            raise _Enough

    for batch in images.split(BATCH):
        handle = layer.register_forward_pre_hook(hook)
        try:
            with torch.no_grad():
                model(batch)
        except _Enough:
            pass
        finally:
            handle.remove()
        yield from seen
        seen.clear()


class _Enough(Exception):
    """Ends a forward pass."""


def columns(layer: QuantLayer, x: Tensor) -> Iterator[Tensor]:
    """An input of a layer as the matrices that its weight multiplies, part by part: (G, T, I) each.

    Linear: (..., I) gives (1, T, I). Convolution: G groups, I = C / G * kh * kw, a row for each place of the output,
    padded as the layer pads. With the effective weight as (G, O / G, I), the output without bias is rows @ weight^T.
    """
    if not isinstance(layer, QuantConv2d):
        yield x.reshape(1, -1, x.shape[-1])
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)
    size = x[0].numel() * layer.kernel_size[0] * layer.kernel_size[1]  # at stride 1, the most that there can be
    for part in x.split(max(1, _LARGEST // size)):
        found = functional.unfold(part, layer.kernel_size, layer.dilation, 0, layer.stride)  # (N, G I, places)
        grouped = found.unflatten(1, (layer.groups, -1))
        yield grouped.permute(1, 0, 3, 2).flatten(1, 2)


def moments(layer: QuantLayer, *inputs: Iterable[Tensor], constant: bool = False) -> list[Tensor]:
    """The means of x y^T over the rows of `columns`, float64 (G, I, I), of each y with the first input as x.

    inputs: of the layer in one network or several, for the same images; the first mean is that of x x^T. constant: each
    row gets a last number 1, which multiplies the bias; the means are (G, I + 1, I + 1).
    """
    totals: list[Tensor] = []
    rows = 0
    for seen in zip(*inputs, strict=True):
        for found in zip(*(columns(layer, x) for x in seen), strict=True):
            parts = [functional.pad(part, (0, 1), value=1.0) for part in found] if constant else found
            transposed = parts[0].transpose(1, 2)
            products = [(transposed @ other).double() for other in parts]
            totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
            rows += parts[0].shape[1]
    return [total / max(1, rows) for total in totals]


def weight_rows(layer: QuantLayer, weight: Tensor) -> Tensor:
    """An effective weight (O, I) or (O, I, kh, kw) by groups, (G, O / G, I kh kw), as `columns` has its inputs."""
    groups = layer.groups if isinstance(layer, QuantConv2d) else 1
    return weight.flatten(1).unflatten(0, (groups, -1))


def as_weight(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `weight_rows`, in the type and memory order of the weight `like`."""
    return torch.empty_like(like).copy_(rows.reshape(like.shape))
