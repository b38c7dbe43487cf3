"""DoReFa's weights (Zhou et al. 2016, arXiv 1606.06160, section 2.3): behind a tanh, on 2^b levels without a zero.

With E = mean|w|, which any-precision networks (arXiv 1911.07346) add, of a tensor or of each output channel:

    v = E tanh(w) / max|tanh w|                                          (DoReFaTransform)
    u = v / (2 E) + 1/2,   q = E (2 round((2^b - 1) u) / (2^b - 1) - 1)  (DoReFaQuantizer; E is max|v|)

The quantizer serves any weight, by its largest magnitude. With the spacing d = 2 E / (2^b - 1) this is
q = d (k + 1/2), k = round(v / d - 1/2) from -2^(b-1) to 2^(b-1) - 1, so thresholds lie at multiples of d.
"""

import torch
from torch import Tensor, nn

from harness.quantization.autograd import straight_through
from harness.quantization.grid import max_abs, safe_step, shared_dims
from harness.quantization.quantizer import WeightQuantizer


class DoReFaTransform(nn.Module):
    """w to v, same shape. The gradient takes max|tanh w| along and E as a constant, as the released code does.

    Where all weights are 0, v is tanh(w), so that the layer gets a gradient and may leave 0.
    """

    def __init__(self, per_channel: bool = False) -> None:
        super().__init__()
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        bounded = weight.tanh()
        peak = max_abs(bounded, self.per_channel)
        dims = shared_dims(weight, self.per_channel)
        mean = weight.detach().abs().mean(dim=dims, keepdim=self.per_channel)
        # The division first: the largest |v| is then E to the last bit, which is what the quantizer takes it for.
        return bounded / safe_step(peak) * torch.where(peak > 0, mean, torch.ones_like(mean))


class DoReFaQuantizer(WeightQuantizer):
    """2^b levels, evenly from -max|v| to max|v|, per tensor or output channel; straight-through, gradient 1.

    Its levels are no multiples of a step, so it has no `step`. A tensor of zeros stays zeros.
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
    """k as floats; halves to even, as everywhere in the project, so 0 is above the threshold on it."""
    return (weight / safe_step(spacing) - 0.5).round()
