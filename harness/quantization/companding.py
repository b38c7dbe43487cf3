"""Companding: uniform rounding between a compressor and its inverse, the expander.

Levels are dense where the compressor is steep.
"""

import torch
from torch import Tensor, nn

from harness.kernels import cpu_companding, dispatch
from harness.quantization.autograd import BOUND_SLACK, by_passes, clip, gives_bf16, round_ste
from harness.quantization.curve import Curve, compress, curve, expand, expand_codes
from harness.quantization.grid import safe_step
from harness.quantization.quantizer import KeepScale, WeightQuantizer, shown


def spread(weight: Tensor, per_channel: bool = False) -> Tensor:
    """The standard deviation over n, shape () or (O, 1, ...), with its gradient; 1 where all weights are equal.

    They count as equal if their deviation is no more than rounding causes. Sums are rounded once, as by the pass in C.
    """
    dims = tuple(range(1 if per_channel else 0, weight.dim()))

    def mean_of(x: Tensor) -> Tensor:
        return x.mean(dim=dims, keepdim=per_channel, dtype=torch.float64).to(x.dtype)

    mean = mean_of(weight)
    variance = mean_of((weight - mean).square())
    limits = torch.finfo(weight.dtype)
    smallest = (16 * limits.eps * mean.detach()).square().clamp(min=limits.tiny)
    # Replaced before the square root (infinite slope at 0): a NaN in the branch not taken would reach the gradient.
    varying = torch.where(variance > smallest, variance, torch.ones_like(variance))
    return varying.double().sqrt().to(weight.dtype)  # torch's square root in fp32 is an ulp off now and then


class CompandingQuantizer(WeightQuantizer):
    """`q(w) = sign(w) s expand(round(compress(|w| / s)))` with a learned range r and a learned curve, `s = r d / Q`.

    d is the weight's standard deviation if `normalize` (r is then in deviations), else 1.
    learned_range: r, () or, per channel, (O, 1, ...), as d. log_slopes: (intervals,), one curve for all channels; None
    at 2 bits, where the curve has no effect on the levels 0 and 1. Codes are indices of levels; a level is a multiple
    of the step only if all slopes are equal. `fused` may be set to False for plain tensor operations.
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
        return self.step_for(self.learned_range, spread(weight, self.per_channel) if self.normalize else None)

    def step_for(self, reach: Tensor, deviation: Tensor | None) -> Tensor:
        """The step of a range; deviation: of the weight, None for a range that is not in deviations."""
        self.require_fitted()
        return (reach if deviation is None else reach * deviation) / self.levels.high

    @gives_bf16
    def forward(self, weight: Tensor, bf16: bool = False) -> Tensor:
        if self.log_slopes is None:
            return super().forward(weight)
        self.require_fitted()
        if self._served(weight):
            return by_passes(_Companded(self, self.log_slopes, bf16), weight, self.learned_range, self.log_slopes)
        return self.plain(weight, self.learned_range, self.log_slopes)

    def plain(self, weight: Tensor, reach: Tensor, log_slopes: Tensor) -> Tensor:
        """The weight at its levels by plain operations, for any range and curve."""
        deviation, high = spread(weight, self.per_channel) if self.normalize else None, self.levels.high
        step, by, sign = self.step_for(reach, deviation), curve(log_slopes, high, weight.dtype), _sign(weight)
        codes = round_ste(compress(clip(sign * weight / safe_step(step), 0, high), by))
        return sign * (step * expand_codes(codes, high, by))

    def _served(self, weight: Tensor) -> bool:
        """Whether passes in C may compute what a curve does to a weight."""
        small, own = self.intervals <= cpu_companding.MOST_INTERVALS, self.learned_range.dtype == torch.float32
        return self.fused and small and own and dispatch.serves(weight)

    def compressor(self, dtype: torch.dtype | None = None) -> Curve:
        """The compressor of this quantizer, in units of codes, with its gradient."""
        logs = self.learned_range.new_zeros(self.intervals) if self.log_slopes is None else self.log_slopes
        return curve(logs, self.levels.high, dtype)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        if self.log_slopes is not None and self._served(weight):
            self.require_fitted()
            return _Companded(self, self.log_slopes, False).passes.codes(weight)
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
        other.learned_range, other.fused = nn.Parameter(self.learned_range.detach() * factor), self.fused
        if self.log_slopes is not None and other.log_slopes is not None:
            other.log_slopes = nn.Parameter(self.log_slopes.detach().clone())
        other.fitted = self.fitted
        return other.to(self.learned_range.device)


def _sign(weight: Tensor) -> Tensor:
    """-1 or 1, never 0, so that a weight of 0 has a gradient."""
    return torch.ones_like(weight).copysign_(weight.detach())


class _Companded:
    """`quantizer.plain` and its gradients by passes in C."""

    def __init__(self, quantizer: CompandingQuantizer, log_slopes: Tensor, bf16: bool) -> None:
        self.bf16, self.plain, high, reach = (
            bf16,
            quantizer.plain,
            quantizer.levels.high,
            quantizer.learned_range.detach(),
        )
        self.passes = cpu_companding.Companding(
            reach.contiguous(), log_slopes.detach().contiguous(), high, high + BOUND_SLACK, quantizer.normalize
        )

    def forward(self, weight: Tensor, reach: Tensor, log_slopes: Tensor) -> Tensor:
        return self.passes.forward(weight, self.bf16)

    def backward(self, gradient: Tensor, weight: Tensor, reach: Tensor, log_slopes: Tensor) -> tuple[Tensor, ...]:
        return self.passes.backward(weight, dispatch.alike(gradient, weight, bf16=True))
