"""A quantizer with separate steps for decision thresholds and for levels; mid-rise, so without a zero."""

import torch
from torch import Tensor, nn

from harness.quantization.grid import middles
from harness.quantization.quantizer import KeepScale, WeightQuantizer, shown


class DecoupledQuantizer(WeightQuantizer):
    """`q(w) = shrink l (k + 1/2)` with `k = clip(floor(w / (shrink t)), -n, n - 1)`, n = 2**(bits - 1).

    The 2**bits levels are odd multiples of `shrink l / 2`, with the level step `l`, a parameter. The thresholds are at
    `shrink t j`, |j| < n, with the threshold step `t`, a buffer. A weight on a threshold belongs to the bin above it.
    `fit` sets both steps to std(w) / 2**(bits - 2). `shrink`, a buffer, starts at 1 and scales both. Steps are () or,
    per channel, (O, 1, ...), and at least MIN_STEP; shrink is ().

    dq/dw = 1 everywhere, beyond the outermost levels too; dq/dl = shrink (k + 1/2); t has no gradient.

    There is no `step`, since values are not integer codes times a step; methods that need that form refuse this
    quantizer. There is no zero either: an all-zero weight gets the level `shrink l / 2`, 5e-6 for l = MIN_STEP.
    """

    MIN_STEP = 1e-5
    takes_values = True
    threshold_step: Tensor
    shrink: Tensor

    def __init__(self, bits: int, per_channel: bool = False) -> None:
        super().__init__(bits, per_channel, "full")
        self.level_step = nn.Parameter(torch.ones(()))
        self.register_buffer("threshold_step", torch.ones(()))
        self.register_buffer("shrink", torch.ones(()))

    def start_from(self, weight: Tensor) -> None:
        start = (spread(weight, self.per_channel) / 2 ** (self.bits - 2)).clamp(min=self.MIN_STEP)
        self.threshold_step, self.level_step = start, nn.Parameter(start.clone())

    def described(self) -> tuple[str, str]:
        steps = (
            f"{shown(self.shrink * self.threshold_step)} (thresholds), {shown(self.shrink * self.level_step)} (levels)"
        )
        return f"{self.levels.low} to {-self.levels.low} steps", steps

    def forward(self, weight: Tensor) -> Tensor:
        value = self.shrink * self.level_step * (self._floor(weight) + 0.5)
        return value + (weight - weight.detach())  # the difference is exactly 0, with gradient 1

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        return self._floor(weight).to(torch.int8)

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        return (self.shrink * self.level_step).reshape(-1, 1) * middles(self.levels).to(weight)

    @torch.no_grad()
    def threshold_distance(self, weight: Tensor) -> Tensor:
        """In threshold steps; above 1/2 only for weights over half a step beyond the outermost threshold."""
        low, high = self.levels
        scaled = self._scaled(weight)
        return (scaled - scaled.round().clamp_(low + 1, high)).abs_()

    @torch.no_grad()
    def centres(self, weight: Tensor) -> Tensor:
        """The middle of each weight's bin between thresholds, `shrink t (k + 1/2)`, same shape.

        The outermost bins are taken to be as wide as the others.
        """
        return self.shrink * self.threshold_step * (self._floor(weight) + 0.5)

    @torch.no_grad()
    def project(self) -> None:
        """Keep the level step at MIN_STEP or more; call after each optimizer step."""
        self.level_step.clamp_(min=self.MIN_STEP)

    def at_bits(self, bits: int, scale: KeepScale) -> WeightQuantizer:
        """keep_step: both steps stay, with fewer or more levels. keep_range: both steps times 2**(old - new bits).

        The latter matches `fit`: one more bit halves every bin and keeps the existing thresholds.
        """
        if bits == self.bits:
            return self
        other = type(self)(bits, self.per_channel)
        factor = 2.0 ** (self.bits - bits) if scale == "keep_range" else 1.0
        other.threshold_step = self.threshold_step * factor
        other.level_step = nn.Parameter(self.level_step.detach() * factor)
        other.shrink, other.fitted = self.shrink.clone(), self.fitted
        return other

    def _scaled(self, weight: Tensor) -> Tensor:
        self.require_fitted()
        return weight.detach() / (self.shrink * self.threshold_step)

    def _floor(self, weight: Tensor) -> Tensor:
        """Codes as floats, without a gradient."""
        return self._scaled(weight).floor_().clamp_(*self.levels)


def spread(weight: Tensor, per_channel: bool) -> Tensor:
    """std(w) over n - 1, as in torch: () per tensor, (O, 1, ...) per channel.

    If there is one weight, or all are equal up to rounding, their magnitude instead.
    """
    dims = tuple(range(1 if per_channel else 0, weight.dim()))
    count = weight.numel() // (len(weight) if per_channel else 1)
    deviation = weight.std(dim=dims, correction=min(1, count - 1), keepdim=per_channel)
    magnitude = weight.square().mean(dim=dims, keepdim=per_channel).sqrt()
    return torch.where(deviation > 1e-6 * magnitude, deviation, magnitude)
