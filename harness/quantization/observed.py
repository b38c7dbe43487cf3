"""What calibration saw of one input: extremes, mean magnitude and a histogram, and the ranges that follow from them."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import UserError

#: How a static range is found: see `ActivationsConfig.range`.
RangeKind = Literal["max", "percentile", "mse"]
#: Bins on either side of 0.
BINS = 2048
_LOG_BINS = BINS.bit_length() - 1
#: The least exponent of a bin's width: smaller values are all in one bin, and fp32 holds its reciprocal.
_LEAST = -111
#: Fractions of a range that `mse` tries, in geometric steps, and those around the best one.
_COARSE = tuple(0.94**power for power in range(64))
_FINE = tuple(0.97**power for power in range(-8, 9))


class Recorder:
    """Collects the numbers of one input over batches, in one pass.

    Bins are as wide as a power of two and begin at its multiples. When a value is too large for them, they are joined
    two by two: the histogram is the same as if the final width had been known before.
    """

    def __init__(self) -> None:
        self.low, self.high, self.magnitudes, self.count, self.features = 0.0, 0.0, 0.0, 0, 0
        self.seen = False
        self.exponent = _LEAST
        self.counts: Tensor | None = None  # int64 (2 BINS,)

    def add(self, x: Tensor, features: int = 0) -> None:
        """Take in an input, any shape. features: of one sample. Raises ValueError for NaN; leaves infinities out."""
        values, self.features = x.detach().float(), features or self.features
        if not values.numel():
            return
        low, high = torch.stack(values.aminmax()).tolist()
        if math.isnan(low) or math.isnan(high):
            raise ValueError("NaN")
        if math.isinf(low) or math.isinf(high):
            self.add(values[values.isfinite()])
            return
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.seen else (low, high)
        self.seen = True
        total = float(values.abs().sum())
        self.magnitudes += total if math.isfinite(total) else float(values.double().abs().sum())
        self.count += values.numel()
        self._widen(max(-low, high))
        places = (values * 2.0**-self.exponent).floor_().to(torch.int32).add_(BINS)
        counts = torch.bincount(places.flatten(), minlength=2 * BINS)
        self.counts = counts if self.counts is None else self.counts + counts

    def _widen(self, largest: float) -> None:
        """Make the bins wide enough for a magnitude."""
        wanted = max(_LEAST, math.frexp(largest)[1] - _LOG_BINS)  # largest < 2^(the first)
        if wanted <= self.exponent:
            return
        if self.counts is not None:
            times = 2 ** min(_LOG_BINS, wanted - self.exponent)
            joined = self.counts.view(-1, times).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS - len(joined) // 2 : BINS + len(joined) // 2] = joined
        self.exponent = wanted

    def observed(self) -> "Observed":
        """What has been seen so far."""
        counts = torch.zeros(2 * BINS, dtype=torch.int64) if self.counts is None else self.counts.cpu()
        mean = self.magnitudes / self.count if self.count else 0.0
        return Observed(self.low, self.high, mean, max(1, self.features), counts, 2.0**self.exponent)


@dataclass(frozen=True, eq=False)
class Observed:
    """One input of a layer, as calibration saw it, in float.

    low, high: the least and the largest value, both 0 where there was none. mean_abs: mean magnitude. features: values
    of one sample. counts: int64 (2 BINS,), how many values were in each bin; bin i is [i - BINS, i - BINS + 1) * width.
    """

    low: float
    high: float
    mean_abs: float
    features: int
    counts: Tensor
    width: float
    _found: dict[tuple[RangeKind, float, int], tuple[float, float]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(x: Tensor) -> "Observed":
        """Of a single tensor whose first dimension is the batch. Raises UserError for NaN."""
        recorder = Recorder()
        try:
            recorder.add(x, x[0].numel() if x.dim() and len(x) else 1)
        except ValueError:
            raise UserError("calibration data: NaN is among the values to fit to") from None
        return recorder.observed()

    @property
    def never_negative(self) -> bool:
        """Whether no value was below 0."""
        return self.low >= 0

    def range(self, kind: RangeKind, bits: int, percentile: float = 99.99) -> tuple[float, float]:
        """The range (low, high) of a static quantizer, low <= 0 <= high.

        max: all values. percentile: values beyond it, and beyond its counterpart below 0, are outside. mse: the range
        of least squared error at that bit-width. Each is computed once.
        """
        key = (kind, percentile if kind == "percentile" else 0.0, bits if kind == "mse" else 0)
        if key not in self._found:
            low, high = min(self.low, 0.0), max(self.high, 0.0)
            if kind == "percentile":
                low, high = max(low, min(self._quantile(100 - percentile), 0.0)), self._quantile(percentile)
                high = min(max(self.high, 0.0), max(high, 0.0))
            elif kind == "mse" and high > low:
                low, high = _least_error(self._sums(), self.width, low, high, bits)
            self._found[key] = low, high
        return self._found[key]

    def _quantile(self, percent: float) -> float:
        """The value that `percent` of all values are below; linear within a bin."""
        sums = self.counts.cumsum(0).double()
        total = float(sums[-1])
        if not total:
            return 0.0
        if percent >= 100:
            return self.high
        wanted = total * percent / 100
        place = min(int(torch.searchsorted(sums, wanted, right=False)), len(sums) - 1)
        below, inside = float(sums[place] - self.counts[place]), float(self.counts[place])
        return (place - BINS + (wanted - below) / max(inside, 1.0)) * self.width

    def _sums(self) -> Tensor:
        """Sums of count, value and squared value over the first k bins, float64 (3, 2 BINS + 1)."""
        counts = self.counts.double()
        centres = (torch.arange(2 * BINS, dtype=torch.float64) - BINS + 0.5) * self.width
        each = torch.stack([counts, counts * centres, counts * centres.square()])
        return torch.cat([torch.zeros(3, 1, dtype=torch.float64), each.cumsum(1)], dim=1)


def _least_error(sums: Tensor, width: float, low: float, high: float, bits: int) -> tuple[float, float]:
    """The range of least squared error: both ends scaled by one factor, then either end by itself."""
    coarse, fine = (torch.tensor(each, dtype=torch.float64) for each in (_COARSE, _FINE))

    def best(lows: Tensor, highs: Tensor) -> tuple[float, float]:
        place = int(_errors(sums, width, lows, highs, bits).argmin())
        return float(lows[place]), float(highs[place])

    ends = best(low * coarse, high * coarse)
    if low < 0 < high:
        ends = best(torch.full_like(fine, ends[0]), (ends[1] * fine).clamp(max=high))
        ends = best((ends[0] * fine).clamp(min=low), torch.full_like(fine, ends[1]))
    return ends


def _errors(sums: Tensor, width: float, lows: Tensor, highs: Tensor, bits: int) -> Tensor:
    """The sum of squared errors with each of C ranges, (C,): values are in the middle of their bins.

    sums: of `Observed._sums`. All values between two thresholds become the level between these, so that three sums over
    the bins there are enough.
    """
    top = 2**bits - 1
    steps = ((highs - lows) / top)[:, None]
    levels = (torch.arange(top + 1, dtype=torch.float64) - (-lows[:, None] / steps).round()) * steps  # (C, top + 1)
    thresholds = (levels[:, :-1] + steps / 2) / width
    ends = (thresholds + BINS - 0.5).ceil().clamp(0, 2 * BINS).long()
    edges = torch.cat([torch.zeros_like(ends[:, :1]), ends, torch.full_like(ends[:, :1], 2 * BINS)], dim=1)
    count, total, squares = sums[:, edges].diff(dim=2)  # (C, top + 1) each
    return (squares - 2 * levels * total + levels.square() * count).sum(dim=1)
