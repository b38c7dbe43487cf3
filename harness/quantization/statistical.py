"""A weight quantizer whose range is twice the mean magnitude of the weights, on a grid without a zero."""

import torch
from torch import Tensor

from harness.quantization.autograd import straight_through
from harness.quantization.grid import middles, safe_step, shared_dims
from harness.quantization.quantizer import KeepScale, WeightQuantizer


class StatisticalQuantizer(WeightQuantizer):
    """Statistical quantization (Liu, Liu, Cheng 2023, arXiv 2302.02210): mid-rise, with range `alpha = 2 mean|w|`.

    With `n = 2^(b-1)` and bins of width alpha / n, a code `k = floor(w / width)`, clipped to -n ... n - 1, means
    the middle of its bin, `width * (k + 1/2)`: 2^b levels, none of them 0. Thresholds are at the ends of bins,
    `width * k`, |k| < n. The gradient is 1 everywhere, also beyond the range, and alpha is detached.

    A tensor (or channel) of zeros has bins of width 0: values and codes are 0, the gradient is 1. There is no `step`,
    since levels are not multiples of one; methods that need integer codes times a step refuse this quantizer.
    """

    def __init__(self, bits: int, per_channel: bool = False) -> None:
        super().__init__(bits, per_channel, "full")
        self.spread = 2.0  # alpha / mean|w|

    def described(self) -> tuple[str, str]:
        return f"{self.spread:.3g} mean|w|", f"range / {-self.levels.low}"

    def width(self, weight: Tensor) -> Tensor:
        """The bins' width alpha / n, without gradient: shape () per tensor, (O, 1, ...) per output channel."""
        return self.spread * self.size(weight) / -self.levels.low

    def size(self, weight: Tensor) -> Tensor:
        """What the range is a multiple of, `spread` times, without gradient: shape () or (O, 1, ...)."""
        return weight.detach().abs().mean(dim=shared_dims(weight, self.per_channel), keepdim=self.per_channel)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the grid, same shape, with gradient 1 everywhere."""
        width = self.width(weight)
        return straight_through(width * (self._bins(weight, width) + 0.5), weight)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The bins' numbers from -n to n - 1, int8, same shape as `weight`."""
        return self._bins(weight, self.width(weight)).to(torch.int8)

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        return self.width(weight).reshape(-1, 1) * middles(self.levels).to(weight)

    @torch.no_grad()
    def threshold_distance(self, weight: Tensor) -> Tensor:
        """The distance of each weight from the nearest threshold, in bins; 0 if all weights are 0."""
        scaled = weight / safe_step(self.width(weight))
        low, high = self.levels
        return (scaled - scaled.round().clamp_(low + 1, high)).abs()

    def at_bits(self, bits: int, scale: KeepScale) -> WeightQuantizer:
        """The quantizer for another bit-width: keep_range keeps alpha, keep_step keeps the width of the bins."""
        if bits == self.bits:
            return self
        other = type(self)(bits, self.per_channel)
        other.spread = self.spread * (other.levels.low / self.levels.low if scale == "keep_step" else 1.0)
        return other

    def _bins(self, weight: Tensor, width: Tensor) -> Tensor:
        """`codes` as floats, by floor. The paper rounds `w / width - 1/2`, which differs only by rounding errors."""
        return (weight.detach() / safe_step(width)).floor_().clamp_(*self.levels)
