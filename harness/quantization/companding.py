"""Companding: uniform rounding between a compressor and its inverse, the expander.

Levels are dense where the compressor is steep. The compressor is piecewise linear over intervals of equal width and
maps [0, high] onto itself. Its parameters are the logarithms of its slopes. If all slopes are equal, compressor and
expander are the identity to the last bit, since both work in units of the integer codes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.quantization.autograd import clip, round_ste
from harness.quantization.grid import safe_step
from harness.quantization.quantizer import KeepScale, WeightQuantizer, shown

#: The largest difference between the logarithms of two slopes; smaller slopes are raised to it. A slope of exp(-10)
#: times another is flat for all purposes, and in fp32 the ends of a flatter interval could coincide.
LOG_RATIO = 10.0


class Curve(NamedTuple):
    """The compressor: its knots, (K + 1,) each, from (0, 0) to (high, high), and its K slopes, > 0, mean 1."""

    inputs: Tensor
    outputs: Tensor
    slopes: Tensor


def curve(log_slopes: Tensor, high: float, dtype: torch.dtype | None = None) -> Curve:
    """The compressor of [0, high] with slopes in proportion to `softmax(log_slopes)`, (K,), and its gradient."""
    # In double precision, so that the rounded knots still increase and end at `high`.
    logs, count = log_slopes.double(), len(log_slopes)
    shares = (logs - logs.detach().max()).clamp(min=-LOG_RATIO).exp()
    # Not cumsum, for which CUDA has no deterministic kernel.
    sums = (shares * torch.ones(count, count, dtype=logs.dtype, device=logs.device).tril()).sum(1)
    counts = torch.arange(count + 1, dtype=logs.dtype, device=logs.device)
    parts = (
        high * (counts / count),
        high * torch.cat([sums.new_zeros(1), sums / sums[-1]]),
        shares / (sums[-1] / count),
    )
    return Curve(*(part.to(dtype or log_slopes.dtype) for part in parts))


def compress(x: Tensor, by: Curve) -> Tensor:
    """The compressor at x in [0, high], any shape; monotone to the last bit, and exactly `high` at `high`."""
    count = len(by.slopes)
    with torch.no_grad():
        # Scaled to round down, so the piece is at most one too low. NaN gives piece 0 here and stays NaN below.
        scale = (1 - 8 * torch.finfo(x.dtype).eps) * count / by.inputs[-1]
        piece = (x * scale).int().clamp_(0, count - 1)
        piece += x >= _lookup(by.inputs[1:], piece)
    return _follow(x, piece, by.inputs, by.outputs, by.slopes)


def expand(y: Tensor, by: Curve) -> Tensor:
    """The inverse of `compress`, with the same guarantees. For small tables only: it searches for each y."""
    with torch.no_grad():
        piece = torch.bucketize(y.contiguous(), by.outputs[1:], right=True, out_int32=True)
    return _follow(y, piece, by.outputs, by.inputs, 1 / by.slopes)


def expand_codes(codes: Tensor, high: int, by: Curve) -> Tensor:
    """`expand(codes, by)` and its gradient, for integers from 0 to high, from a table of all of them."""
    at = codes.detach()
    every = torch.arange(high + 1, dtype=at.dtype, device=at.device)
    with torch.no_grad():
        knot = torch.bucketize(every, by.outputs[1:-1], right=True, out_int32=True)
        index = at.int().clamp_(0, high)
    # The second term is 0; it carries the gradient of the codes.
    return _lookup(expand(every, by), index) + _lookup(_lookup(1 / by.slopes, knot), index) * (codes - at)


def spread(weight: Tensor, per_channel: bool = False) -> Tensor:
    """The standard deviation over n, shape () or (O, 1, ...), with its gradient; 1 where all weights are equal.

    They count as equal if their deviation is no more than rounding causes.
    """
    dims = tuple(range(1 if per_channel else 0, weight.dim()))
    mean = weight.mean(dim=dims, keepdim=per_channel)
    variance = (weight - mean).square().mean(dim=dims, keepdim=per_channel)
    limits = torch.finfo(weight.dtype)
    smallest = (16 * limits.eps * mean.detach()).square().clamp(min=limits.tiny)
    # Replaced before the square root (infinite slope at 0): a NaN in the branch not taken would reach the gradient.
    return torch.where(variance > smallest, variance, torch.ones_like(variance)).sqrt()


def _follow(x: Tensor, piece: Tensor, source: Tensor, target: Tensor, slopes: Tensor) -> Tensor:
    """The piecewise linear map of the knots `source` to the knots `target`.

    piece: int32, the index of the last knot <= x, up to the final knot. If source and target agree, `x - knot` is
    exact, so the result is x itself.
    """
    with torch.no_grad():
        # Each operation below rounds monotonically, so only the end of an interval may exceed the next knot. There the
        # slope is reduced slightly.
        width, rise = source.diff(), target.diff()
        beyond = target[:-1] + slopes * width > target[1:]
        less = torch.where(beyond, rise / width * (1 - 8 * torch.finfo(x.dtype).eps), slopes) - slopes
    slopes = slopes + less
    slopes = torch.cat([slopes, slopes[-1:]])
    return _lookup(target, piece) + _lookup(slopes, piece) * (x - _lookup(source, piece))


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for a table (K,), in the shape and memory layout of `index`.

    By index_select: the gradient of indexing took 50 times as long on a CPU (torch 2.15, K = 16).
    """
    order = sorted(range(index.dim()), key=index.stride, reverse=True)
    dense = index.permute(order)  # in memory order, also for channels-last weights
    found = table.index_select(0, dense.reshape(-1)).view(dense.shape)
    return found.permute([order.index(dimension) for dimension in range(index.dim())])


class CompandingQuantizer(WeightQuantizer):
    """`q(w) = sign(w) s expand(round(compress(|w| / s)))` with a learned range r and a learned curve, `s = r d / Q`.

    d is the weight's standard deviation if `normalize` (r is then in deviations), else 1.
    learned_range: r, () or, per channel, (O, 1, ...), as d. log_slopes: (intervals,), one curve for all channels; None
    at 2 bits, where the curve has no effect on the levels 0 and 1. Codes are indices of levels; a level is a multiple
    of the step only if all slopes are equal.
    """

    MIN_RANGE = 1e-5
    takes_values = True
    learned_range: nn.Parameter
    log_slopes: nn.Parameter | None

    def __init__(
        self, bits: int, per_channel: bool = False, intervals: int = 16, normalize: bool = True, start: float = 3.0
    ) -> None:
        super().__init__(bits, per_channel)
        self.intervals, self.normalize, self.start = intervals, normalize, start
        self.learned_range = nn.Parameter(torch.tensor(start))
        slopes = nn.Parameter(torch.zeros(intervals)) if self.levels.high > 1 else None
        self.register_parameter("log_slopes", slopes)

    def start_from(self, weight: Tensor) -> None:
        """Set the range to `start` standard deviations, and all slopes equal."""
        deviation = spread(weight, self.per_channel)
        first = torch.full_like(deviation, self.start) if self.normalize else self.start * deviation
        self.learned_range = nn.Parameter(first.clamp(min=self.MIN_RANGE))

    def described(self) -> tuple[str, str]:
        reach = shown(self.learned_range) + (" std(w)" if self.normalize else "")
        return reach, f"range / {self.levels.high} on average"

    def step(self, weight: Tensor) -> Tensor:
        """The mean distance between neighbouring levels."""
        self.require_fitted()
        reach = self.learned_range * spread(weight, self.per_channel) if self.normalize else self.learned_range
        return reach / self.levels.high

    def forward(self, weight: Tensor) -> Tensor:
        if self.log_slopes is None:
            return super().forward(weight)
        step, by = self.step(weight), self.compressor(weight.dtype)
        sign = _sign(weight)
        codes = round_ste(compress(clip(sign * weight / safe_step(step), 0, self.levels.high), by))
        return sign * (step * expand_codes(codes, self.levels.high, by))

    def compressor(self, dtype: torch.dtype | None = None) -> Curve:
        """The compressor of this quantizer, in units of codes, with its gradient."""
        logs = self.learned_range.new_zeros(self.intervals) if self.log_slopes is None else self.log_slopes
        return curve(logs, self.levels.high, dtype)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        position = self._position(weight).clamp_(max=self.levels.high)
        return (_sign(weight) * position.round_()).to(torch.int8)

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        positive = expand(torch.arange(self.levels.high + 1).to(weight), self.compressor(weight.dtype))
        return self.step(weight).reshape(-1, 1) * torch.cat([-positive[1:].flip(0), positive])

    @torch.no_grad()
    def threshold_distance(self, weight: Tensor) -> Tensor:
        """How far each weight is from the nearest decision threshold, on the compressor's scale, same shape.

        On this scale each bin has width 1: 0 at a threshold, 1/2 at a level; beyond the range 1 more per step.
        """
        position = self._position(weight)
        return (position - (position.floor().clamp(max=self.levels.high - 1) + 0.5)).abs()

    def _position(self, weight: Tensor) -> Tensor:
        """|w| on the compressor's scale, continued beyond the range with slope 1; no gradient."""
        magnitude, high = weight.abs() / safe_step(self.step(weight)), self.levels.high
        inside = magnitude.clamp(max=high)
        if self.log_slopes is not None:
            inside = compress(inside, self.compressor(weight.dtype))
        return inside + (magnitude - high).clamp_(min=0)

    @torch.no_grad()
    def project(self) -> None:
        """Keep the range at MIN_RANGE or more; call after each optimizer step."""
        self.learned_range.clamp_(min=self.MIN_RANGE)

    def at_bits(self, bits: int, scale: KeepScale) -> "WeightQuantizer":
        """The same curve over the same range (keep_range), or over a range with the same mean step (keep_step)."""
        if bits == self.bits:
            return self
        other = type(self)(bits, self.per_channel, self.intervals, self.normalize, self.start)
        factor = 1.0 if scale == "keep_range" else other.levels.high / self.levels.high
        other.learned_range = nn.Parameter(self.learned_range.detach() * factor)
        if self.log_slopes is not None and other.log_slopes is not None:
            other.log_slopes = nn.Parameter(self.log_slopes.detach().clone())
        other.fitted = self.fitted
        return other.to(self.learned_range.device)


def _sign(weight: Tensor) -> Tensor:
    """-1 or 1, never 0, so that a weight of 0 has a gradient."""
    return torch.ones_like(weight).copysign_(weight.detach())
