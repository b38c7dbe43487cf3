"""DoReFa's weight quantization (Zhou et al. 2016, arXiv 1606.06160, section 2.3): tanh, then 2^b levels without a zero.

The factor E = mean|w|, per tensor or per output channel, is from any-precision networks (arXiv 1911.07346):

    v = E tanh(w) / max|tanh w|                                          (DoReFaTransform)
    u = v / (2 E) + 1/2,   q = E (2 round((2^b - 1) u) / (2^b - 1) - 1)  (DoReFaQuantizer; E is max|v|)

The quantizer takes any weight; its E is the largest magnitude. With the spacing d = 2 E / (2^b - 1),
q = d (k + 1/2) and k = round(v / d - 1/2), from -2^(b-1) to 2^(b-1) - 1, so thresholds are at multiples of d.
"""

import torch
from torch import Tensor, nn

from harness.quantization.autograd import straight_through
from harness.quantization.grid import max_abs, middles, safe_step, shared_dims
from harness.quantization.quantizer import WeightQuantizer


class DoReFaTransform(nn.Module):
    """w to v, same shape. The gradient flows through max|tanh w|; E is detached. Both are as in the released code.

    If all weights are 0, v is tanh(w), so that the layer gets a gradient and can leave 0.
    """

    def __init__(self, per_channel: bool = False) -> None:
        super().__init__()
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        bounded = weight.tanh()
        peak = max_abs(bounded, self.per_channel)
        dims = shared_dims(weight, self.per_channel)
        mean = weight.detach().abs().mean(dim=dims, keepdim=self.per_channel)
        # Division first: the largest |v| is then exactly E, as the quantizer assumes.
        return bounded / safe_step(peak) * torch.where(peak > 0, mean, torch.ones_like(mean))


class DoReFaQuantizer(WeightQuantizer):
    """2^b evenly spaced levels from -max|v| to max|v|, per tensor or output channel; straight-through gradient.

    The levels are not multiples of a step, so it has no `step`. A tensor of zeros stays zero.
    """

    def __init__(self, bits: int, per_channel: bool = False) -> None:
        super().__init__(bits, per_channel, "full")

    def described(self) -> tuple[str, str]:
        return "max|w|", f"2 max|w| / {2**self.bits - 1}"

    def forward(self, weight: Tensor) -> Tensor:
        return self.at(weight, self.bits)

    def at(self, weight: Tensor, bits: int) -> Tensor:
        """As `forward`, at another bit-width."""
        distance = spacing(weight, bits, self.per_channel)
        return straight_through(distance * (_codes(weight.detach(), distance) + 0.5), weight)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        return _codes(weight, self._spacing(weight)).clamp_(*self.levels).to(torch.int8)

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        return self._spacing(weight).reshape(-1, 1) * middles(self.levels).to(weight)

    @torch.no_grad()
    def threshold_distance(self, weight: Tensor) -> Tensor:
        """In spacings of the levels, 0 to 1/2; the outermost levels are half a spacing from the last threshold."""
        scaled = weight / safe_step(self._spacing(weight))
        return (scaled - scaled.round()).abs()

    def _spacing(self, weight: Tensor) -> Tensor:
        return spacing(weight, self.bits, self.per_channel)


def spacing(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    """The distance of two levels, >= 0, shape () or (O, 1, ...), without gradient."""
    return 2 * max_abs(weight.detach(), per_channel) / (2**bits - 1)


def _codes(weight: Tensor, spacing: Tensor) -> Tensor:
    """k as floats; halves to even, as everywhere in the project, so a weight of 0 gets the code 0."""
    return (weight / safe_step(spacing) - 0.5).round()
