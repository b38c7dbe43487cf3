"""Smoothing of keys and values: a shift and a scale for each channel, which ranges of single tokens then do not see.

    rounded(x) = scale * q((x - shift) / scale) + shift          x (B, H, T, D); shift, scale (H, 1, D)

A scale can move into the projections around it and then costs nothing: keys and values come out of theirs divided by
it, queries and inputs of the output projection multiplied. RoPE turns the channels c and c + D / 2 of a head into one
another, so both have the same scale there. A shift stays with the quantizer, behind RoPE.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.quantization.key_values import KeyValueQuantizer, TokenGroupQuantizer

#: What the output projection is called in transformers' decoders.
_OUTPUTS = ("o_proj", "out_proj")


class SmoothedGroupQuantizer(TokenGroupQuantizer):
    """A `TokenGroupQuantizer` of shifted and scaled channels; shift and scale start at 0 and 1, (H, 1, D)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, bits: int, group: int, recent: int, like: Tensor) -> None:
        super().__init__(bits, group, recent)
        self.register_buffer("shift", torch.zeros_like(like)[:, None])
        self.register_buffer("scale", torch.ones_like(like)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.shift) / self.scale) * self.scale + self.shift


class ExtremesRecorder(KeyValueQuantizer):
    """Fills a slot in float and keeps the least and the largest value of each channel, (H, D), over all tokens."""

    def __init__(self) -> None:
        super().__init__(bits=8)
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.amin((0, 2)), x.amax((0, 2))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        return x

    @property
    def middle(self) -> Tensor:
        """Half-way between both, (H, D)."""
        assert self.low is not None
        assert self.high is not None, "the attention was called"
        return (self.high + self.low) / 2

    @property
    def half_range(self) -> Tensor:
        """How far both are from it, (H, D)."""
        assert self.low is not None
        assert self.high is not None, "the attention was called"
        return (self.high - self.low) / 2


def relative_to_head(sizes: Tensor) -> Tensor:
    """Positive sizes (H, C) over their geometric mean in each head: folding them changes no head's overall scale."""
    known = sizes.clamp_min(1e-5 * sizes.amax().clamp_min(torch.finfo(sizes.dtype).tiny))
    return known / known.log().mean(-1, keepdim=True).exp()


def paired(sizes: Tensor) -> Tensor:
    """The larger size of the two channels that RoPE turns into one another, (H, D) -> (H, D / 2)."""
    return sizes.unflatten(-1, (2, -1)).amax(-2)


@dataclass(frozen=True)
class Projections:
    """The linear layers of an attention with H heads of keys and values, by their names in it; N query heads share one.

    output: the name of the output projection.
    """

    output: str
    shared: int

    @staticmethod
    def of(attention: nn.Module, heads: int, size: int) -> "Projections | None":
        """Those of an attention with q_proj, k_proj, v_proj and o_proj of matching sizes; None for others.

        size: D. Whether anything else is between projection and attention, such as a norm, only a test pass can tell.
        """
        output = next((name for name in _OUTPUTS if hasattr(attention, name)), "")
        layers = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", output)]
        query, key, value, out = (each if isinstance(each, nn.Linear) else None for each in layers)
        if query is None or key is None or value is None or out is None or size % 2:
            return None
        shared, rest = divmod(query.out_features, heads * size)
        fits = key.out_features == value.out_features == heads * size and out.in_features == query.out_features
        return Projections(output, shared) if fits and not rest else None

    def factors(self, key_scale: Tensor, value_scale: Tensor) -> dict[str, Tensor]:
        """By the name of the layer: what its weight is multiplied by, (O, 1), or (1, I) for the output projection.

        key_scale: (H, D), alike in both halves of D; value_scale: (H, D).
        """
        of_queries, of_outputs = (each.repeat_interleave(self.shared, 0).flatten() for each in (key_scale, value_scale))
        return {
            "q_proj": of_queries[:, None],
            "k_proj": 1 / key_scale.flatten()[:, None],
            "v_proj": 1 / value_scale.flatten()[:, None],
            self.output: of_outputs[None],
        }
