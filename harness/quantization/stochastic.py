"""Gradient quantizers: modules for the slots of gradients, which round stochastically.

Each is unbiased: the mean over draws is the gradient. Chen et al. 2020 (arXiv 2010.14298), with the released code.
Shapes: a gradient is (N, ...), N samples; a vector is one sample. Flattened it is G, (N, D). B = 2^bits - 1.
"""

import torch
from torch import Tensor, nn

from harness.core.seeding import sub_seed
from harness.quantization.grid import levels, safe_step

#: Added to both ends of a range, absolute, as in the released code: the range of zeros is not 0.
MARGIN = 1e-8


def stochastic_round(codes: Tensor, top: int, generator: torch.Generator) -> Tensor:
    """One of the two integers next to each code, in [0, top]: the upper one with the probability of the fraction.

    An integer stays as it is: adding a uniform number and rounding would move one in 10^5 of those above 64, in fp32.
    """
    below = codes.floor()
    drawn = torch.rand(codes.shape, generator=generator, device=codes.device)
    return below.add_(drawn < codes - below).clamp_(0, top)


def round_by(dim: int, values: Tensor, top: int, generator: torch.Generator) -> Tensor:
    """Values (N, D) rounded stochastically to `top + 1` levels, each range over one dimension, 1e-8 wider at both ends.

    Equal values stay as they are. Where an end of a range is not finite, so is no result of it: all are NaN.
    """
    low, high = values.aminmax(dim=dim, keepdim=True)
    margin = MARGIN * (high > low)
    low = low - margin
    step = (high + margin - low) / top
    return stochastic_round((values - low) / safe_step(step), top, generator).mul_(step).add_(low)


class GradientQuantizer(nn.Module):
    """Base of the gradient quantizers. Subclasses give `rounded`.

    bits: 2 to 8. Its draws depend on the seed of `start` and the number of calls since, and are made on the gradient's
    device. It has no state: to continue a run, call `start` with the same seed.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        levels(bits)  # refuses what is no bit-width
        self.bits, self.top = bits, 2**bits - 1
        self.start(0)

    def start(self, seed: int) -> None:
        """Draw from here on as after any other `start` with this seed; called at each step, with a seed of its own."""
        self.seed, self.calls = seed, 0

    @torch.no_grad()
    def forward(self, gradient: Tensor) -> Tensor:
        """The rounded gradient, same shape. An infinity or NaN makes all that share its range NaN."""
        if not gradient.numel():
            return gradient
        generator = torch.Generator(gradient.device).manual_seed(sub_seed(self.seed, self.calls))
        self.calls += 1
        rows = gradient.flatten(1) if gradient.dim() > 1 else gradient.reshape(1, -1)
        return self.rounded(rows, generator).view(gradient.shape)

    def rounded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The rounded G, (N, D)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class TensorQuantizer(GradientQuantizer):
    """PTQ: one range for the tensor, widened so that 0 is a level.

    From low = min(min G - 1e-8, 0) and high = max(max G + 1e-8, 0): the zero level is z = floor(-low B / (high - low)),
    and the step s = -low / z, with which levels s (k - z), k = 0...B, still reach high. Where no value is negative,
    z = 0 and s = high / B. Where low is less than a step below 0, z would be 0 too; then z = 1, s = high / (B - 1).
    """

    def rounded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        least, largest = rows.aminmax()
        low, high = (least - MARGIN).clamp(max=0), (largest + MARGIN).clamp(min=0)
        zero = (-low * (self.top / (high - low))).floor().clamp(max=self.top)
        step = torch.where(zero >= 1, -low / zero, high / (self.top - 1))
        positive = least >= 0
        step = torch.where(positive, high / self.top, step)
        zero = torch.where(positive, 0, zero.clamp(min=1))
        return (stochastic_round(rows / step + zero, self.top, generator) - zero) * step


class SampleQuantizer(GradientQuantizer):
    """PSQ: a range for each sample, from min G_i - 1e-8 to max G_i + 1e-8."""

    def rounded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return round_by(1, rows, self.top, generator)


class ColumnQuantizer(GradientQuantizer):
    """A range for each of the D places over the samples of the batch, with the same margins."""

    def rounded(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return round_by(0, rows, self.top, generator)
