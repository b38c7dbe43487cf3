"""How large the layers of a network are, and what it costs to run them at given bits.

Costs are of one image. A convolution counts as the matrix product that its unfolded inputs make of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.quantization.layers import QuantConv2d, QuantLayer

#: Bits of what stays in float.
FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerSize:
    """Of one layer. weights: its numbers. inputs: numbers that come to it for one image, in all its calls.

    rows, inner, outer, groups: its product for one image is (rows, inner) by (inner, outer), `groups` times.
    """

    weights: int
    inputs: int
    rows: int
    inner: int
    outer: int
    groups: int = 1

    @property
    def multiplications(self) -> int:
        """For one image."""
        return self.rows * self.inner * self.outer * self.groups

    @property
    def product(self) -> str:
        """The shape as a word, for tables of times: `65x32x96`, `64x9x1x16` with groups."""
        return "x".join(map(str, (self.rows, self.inner, self.outer, *([self.groups] if self.groups > 1 else []))))

    def bit_operations(self, point: BitWidths) -> float:
        """Multiplications, each as many times as the bits of its weight times those of its input."""
        return float(self.multiplications * (point.weights or FLOAT_BITS) * (point.activations or FLOAT_BITS))

    def bytes(self, point: BitWidths) -> float:
        """Of its weights and its inputs, which are read once."""
        bits = self.weights * (point.weights or FLOAT_BITS) + self.inputs * (point.activations or FLOAT_BITS)
        return bits / 8


def layer_sizes(model: nn.Module, layers: Mapping[str, QuantLayer], images: Tensor) -> dict[str, LayerSize]:
    """The sizes of layers of a network, in the order in which it calls them; one that is never called is left out.

    images: (N, C, H, W), of which the first is used.
    """
    found: dict[str, LayerSize] = {}

    def note(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        groups = layer.groups if isinstance(layer, QuantConv2d) else 1
        inner, outer = layer.weight[0].numel(), layer.weight.shape[0] // groups
        before = found.get(name)
        seen = LayerSize(
            layer.weight.numel(), inputs[0].numel(), output.numel() // (outer * groups), inner, outer, groups
        )
        if before is not None:
            seen = LayerSize(seen.weights, before.inputs + seen.inputs, before.rows + seen.rows, inner, outer, groups)
        found[name] = seen

    handles = [
        layer.register_forward_hook(lambda *seen, name=name: note(name, *seen)) for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found
