"""Uniform quantizers whose step is the one of least squared error on a Gaussian: of weights, and of activations.

The step is that of N(0, 1) times a standard deviation: of a whole weight, and of each channel of each image.
"""

from typing import Literal

import torch
from torch import Tensor

from harness.quantization.activations import ActivationQuantizer, Rows
from harness.quantization.autograd import straight_through
from harness.quantization.decoupled import spread
from harness.quantization.grid import safe_step
from harness.quantization.observed import Observed
from harness.quantization.quantizer import KeepScale
from harness.quantization.statistical import StatisticalQuantizer

#: By bits b: the step of the mid-rise quantizer of 2^b levels that has the least squared error on N(0, 1).
STEPS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335, 5: 0.188, 6: 0.104, 7: 0.057, 8: 0.031}
#: What DAQ's released code takes in place of the step of b bits. index: that of b - 1, when it only deploys; constant:
#: that of b - 1 for one b whatever the bits are, when it trains.
Quirk = Literal["none", "index", "constant"]
#: Bits that the constants are for: of activations and weights, and of their deviations.
_CONSTANT, _CONSTANT_OF_DEVIATIONS = 2, 8


def gaussian_step(bits: int, quirk: Quirk = "none", constant: int = _CONSTANT) -> float:
    """The step for N(0, 1). bits: 2 to 8. constant: the bits that the quirk of this name takes for all."""
    return STEPS[{"none": bits, "index": bits - 1, "constant": constant - 1}[quirk]]


class GaussianQuantizer(StatisticalQuantizer):
    """A weight on the mid-rise grid of width `std(w) STEPS[b]`: levels `width (k + 1/2)`.

    k is from -2^(b-1) to 2^(b-1) - 1. The mean is taken to be 0, and std(w) is over n - 1. The gradient is 1
    everywhere, and std(w) is detached.
    """

    def __init__(self, bits: int, per_channel: bool = False, quirk: Quirk = "none") -> None:
        super().__init__(bits, per_channel)
        self.spread = gaussian_step(bits, quirk) * -self.levels.low

    def size(self, weight: Tensor) -> Tensor:
        return spread(weight.detach(), self.per_channel)

    def described(self) -> tuple[str, str]:
        return f"{self.spread:.3g} std(w)", f"range / {-self.levels.low}"


class DynamicGaussianQuantizer(ActivationQuantizer):
    """DAQ's quantizer of an input (Hong et al. 2020, arXiv 2012.11230): a grid for each channel of each image.

    With the mean m and the deviation s of a channel over its places, both found at run time, and d = STEPS[b]:

        signed:          m + s d (k + 1/2),  k = floor((x - m) / (s d)) from -2^(b-1) to 2^(b-1) - 1
        never negative:  s d k,              k = round(x / (s d)) from 0 to 2^b - 1

    rows: "sample", (..., C, H, W), the places are H, W; "last", (N, ..., C), all between the first and the last
    dimension. Where a channel has a single place, the statistics are those of the image, over its channels. Whether an
    input may be negative is taken from calibration, and kept in the buffer `negative`.

    sigma_bits: deviations of an image's channels are on a mid-rise grid themselves, of their own mean and deviation;
    None: float. A channel that does not vary (s = 0) becomes m, or 0.

    The gradient is 1 everywhere; the statistics have none. quirk: see `Quirk`; both also leave codes of inputs that are
    never negative without an upper end, and let quantized deviations of 0 or less switch their channel off.
    """

    negative: Tensor

    def __init__(
        self,
        bits: int,
        rows: Rows = "sample",
        sigma_bits: int | None = 8,
        quirk: Quirk = "none",
        signed: bool = True,
    ) -> None:
        super().__init__(bits, signed)
        self.rows: Rows = rows
        self.sigma_bits: int | None = sigma_bits
        self.quirk: Quirk = quirk
        self.register_buffer("negative", torch.tensor(signed))

    def start_from(self, observed: Observed) -> None:
        self.negative.fill_(self.signed)

    def taken(self) -> None:
        self.signed = bool(self.negative)

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        offset, width, places = self._placed(x.detach())
        return straight_through(offset + width * places, x)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """0 to 2^bits - 1, from the lowest level of each channel."""
        places = self._placed(x.detach())[2]
        return (places + (2 ** (self.bits - 1) - 0.5) if self.signed else places).to(torch.int16)

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset and width of each channel, and where each value is put, in widths from the offset."""
        self.require_fitted()
        over, channels = self._dimensions(x)
        mean, deviation = (_moments if self.signed else _moments_above_zero)(x, over)
        width = gaussian_step(self.bits, self.quirk) * self._coarse(deviation, channels)
        scaled = (x - mean) / safe_step(width)
        if self.signed:
            half = 2 ** (self.bits - 1)
            return mean, width, scaled.floor_().clamp_(-half, half - 1).add_(0.5)
        most = 2**self.bits - 1 if self.quirk == "none" else None
        return mean, width, scaled.round_().clamp_(0, most)

    def _dimensions(self, x: Tensor) -> tuple[tuple[int, ...], int | None]:
        """Those that statistics are over, and that of the channels, None where they are over these, too."""
        over = (-2, -1) if self.rows == "sample" else tuple(range(1, x.dim() - 1))
        channels = -3 if self.rows == "sample" else -1
        return (over, channels) if any(x.shape[each] > 1 for each in over) else ((*over, channels), None)

    def _coarse(self, deviation: Tensor, channels: int | None) -> Tensor:
        """Deviations on their grid, same shape; as they are where there is one for an image, or all are alike.

        The bin that 0 is in has the middle of its positive part for a level, so that no channel is switched off.
        """
        if self.sigma_bits is None or channels is None or deviation.shape[channels] == 1:
            return deviation
        apart, mean = torch.std_mean(deviation, channels, keepdim=True)
        width = gaussian_step(self.sigma_bits, self.quirk, _CONSTANT_OF_DEVIATIONS) * apart
        half = 2 ** (self.sigma_bits - 1)
        bins = ((deviation - mean) / safe_step(width)).floor_().clamp_(-half, half - 1)
        low, high = mean + width * bins, mean + width * (bins + 1)
        level = ((low.clamp(min=0) if self.quirk == "none" else low) + high) / 2
        return torch.where((deviation > 0) & (width > 0), level.clamp(min=0), deviation)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """The step follows from the bits and the input alone, whatever `scale` says."""
        if bits == self.bits:
            return self
        other = type(self)(bits, self.rows, self.sigma_bits, self.quirk, self.signed).to(self.negative.device)
        other.fitted = self.fitted
        return other.train(self.training)

    def described(self) -> str:
        return f"step={gaussian_step(self.bits, self.quirk)} deviations, sigma_bits={self.sigma_bits}"


def _moments(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, over n - 1, with sizes 1 in the dimensions `over`."""
    count = 1
    for each in over:
        count *= x.shape[each]
    deviation, mean = torch.std_mean(x, over, correction=min(1, count - 1), keepdim=True)
    return mean, deviation


def _moments_above_zero(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """0, and the deviation of the positive values; one more, at 0, keeps that of a single one from being 0."""
    count = (x > 0).sum(over, keepdim=True) + 1
    above = x.clamp(min=0)
    mean = above.sum(over, keepdim=True) / count
    variance = above.square().sum(over, keepdim=True) / count - mean.square()
    return torch.zeros_like(mean), variance.clamp(min=0).sqrt()
