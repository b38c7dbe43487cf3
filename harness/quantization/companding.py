"""Companding: uniform rounding between a compressor and its inverse, the expander.

Levels are dense where the compressor is steep. The compressor is piecewise linear over intervals of equal width and
maps [0, high] onto itself. Its parameters are the logarithms of its slopes. If all slopes are equal, compressor and
expander are the identity to the last bit, since both work in units of the integer codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.kernels import cpu, dispatch
from harness.quantization.autograd import BOUND_SLACK, by_passes
from harness.quantization.curve import Curve, by_tables, compress, curve, levels_of, safe_slopes, sign_of
from harness.quantization.grid import safe_step
from harness.quantization.quantizer import KeepScale, WeightQuantizer, shown


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


class CompandingQuantizer(WeightQuantizer):
    """`q(w) = sign(w) s expand(round(compress(|w| / s)))` with a learned range r and a learned curve, `s = r d / Q`.

    d is the weight's standard deviation if `normalize` (r is then in deviations), else 1.
    learned_range: r, () or, per channel, (O, 1, ...), as d. log_slopes: (intervals,), one curve for all channels; None
    at 2 bits, where the curve has no effect on the levels 0 and 1. Codes are indices of levels; a level is a multiple
    of the step only if all slopes are equal. `fused` may be set to False for plain
    operations.
    """

    MIN_RANGE = 1e-5
    takes_values = True
    learned_range: nn.Parameter
    log_slopes: nn.Parameter | None
    fused: bool = True

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
        tables = (by.inputs, by.outputs, safe_slopes(*by), *levels_of(self.levels.high, by))
        served = self.intervals <= cpu.MOST_INTERVALS and step.dtype == torch.float32
        if self.fused and served and dispatch.serves(weight):
            return by_passes(Companded(self.intervals, self.levels.high), weight, step, torch.cat(tables))
        return by_tables(weight, step, *tables)

    def compressor(self, dtype: torch.dtype | None = None) -> Curve:
        """The compressor of this quantizer, in units of codes, with its gradient."""
        logs = self.learned_range.new_zeros(self.intervals) if self.log_slopes is None else self.log_slopes
        return curve(logs, self.levels.high, dtype)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        position = self._position(weight).clamp_(max=self.levels.high)
        return (sign_of(weight) * position.round_()).to(torch.int8)

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
        other.fused = self.fused
        factor = 1.0 if scale == "keep_range" else other.levels.high / self.levels.high
        other.learned_range = nn.Parameter(self.learned_range.detach() * factor)
        if self.log_slopes is not None and other.log_slopes is not None:
            other.log_slopes = nn.Parameter(self.log_slopes.detach().clone())
        other.fitted = self.fitted
        return other.to(self.learned_range.device)


@dataclass
class Companded:
    """`by_tables` and its gradients, each one pass over the weight; the tables one behind another."""

    count: int
    high: int

    def forward(self, weight: Tensor, step: Tensor, tables: Tensor) -> Tensor:
        return cpu.compand(weight, step.flatten(), tables, self.count, self.high)

    def backward(self, gradient: Tensor, weight: Tensor, step: Tensor, tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape, gradient = (self.count, self.high, BOUND_SLACK), dispatch.alike(gradient, weight)
        out, pulls, to_tables = cpu.compand_backward(weight, gradient, step.flatten(), tables, *shape)
        return out, pulls.to(step.dtype).view(step.shape), to_tables.to(tables.dtype)

    def plain(self, weight: Tensor, step: Tensor, tables: Tensor) -> Tensor:
        knots, codes = self.count + 1, self.high + 1
        return by_tables(weight, step, *tables.split([knots, knots, knots, codes, codes]))
