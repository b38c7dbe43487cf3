"""Quantizers of activations that QAT methods bring along: with learned biases, with a learned curve, clamped."""

from typing import Any

import torch
from torch import Tensor, nn

from harness.quantization.activations import ActivationQuantizer, Grid
from harness.quantization.autograd import clip, round_ste
from harness.quantization.curve import Curve, compress, curve, expand_codes
from harness.quantization.grid import levels, safe_step
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.observed import Observed
from harness.quantization.quantizer import KeepScale, shown


class Shift(nn.Module):
    """`x + shift`: what stays of a quantizer with biases where activations are float."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Shifted(ActivationQuantizer):
    """`quantizer(x) + shift`: what stays of a quantizer with biases where the default quantizer rounds."""

    takes_values = False
    shift: Tensor

    def __init__(self, quantizer: ActivationQuantizer, shift: Tensor) -> None:
        super().__init__(quantizer.bits, quantizer.signed)
        self.quantizer = quantizer
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = self.quantizer(x)
        return rounded + self.shift

    def codes(self, x: Tensor) -> Tensor:
        return self.quantizer.codes(x)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        return self if bits == self.bits else Shifted(self.quantizer.at_bits(bits, scale), self.shift)

    def described(self) -> str:
        return "shifted"


class BiasedStepQuantizer(LearnedStepQuantizer):
    """A learned step between two learned biases: `q(x + before) + after` (Liu, Liu, Cheng 2023, arXiv 2302.02210).

    shape: of the biases, (C,) for inputs (..., C) of linear layers, (C, 1, 1) for images; they start at 0. Codes are
    those of the biased input.
    """

    def __init__(self, bits: int, shape: tuple[int, ...], signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.before, self.after = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.before) + self.after

    def codes(self, x: Tensor) -> Tensor:
        return super().codes(x + self.before)

    def like(self, bits: int) -> "BiasedStepQuantizer":
        other = type(self)(bits, tuple(self.before.shape), self.signed)
        other.before, other.after = (nn.Parameter(each.detach().clone()) for each in (self.before, self.after))
        return other

    def in_float(self) -> nn.Module:
        return Shift((self.before + self.after).detach())

    def recalibrated(self, default: ActivationQuantizer) -> ActivationQuantizer:
        return Shifted(default, (self.before + self.after).detach())


def magnitudes(bits: int, signed: bool) -> int:
    """The highest code of a magnitude: 2^(b-1) - 1 with a sign, 2^b - 1 without."""
    return levels(bits, "symmetric" if signed else "unsigned").high


def reach_of(observed: Observed, bits: int) -> float:
    """The largest magnitude of the range of least squared error; 1 for an input of zeros."""
    low, high = observed.range("mse", bits)
    return max(-low, high) or 1.0


class MagnitudeQuantizer(ActivationQuantizer):
    """Base of quantizers of |x|, odd in x; without a sign, values below 0 become 0.

    The buffer `negative` keeps the sign in a state dict. `resize` makes what depends on it.
    """

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.register_buffer("negative", torch.tensor(signed))

    def resize(self) -> None:
        """Make the parameters whose number depends on the sign; it is called when calibration or a file gives it."""

    def start_from(self, observed: Observed) -> None:
        self.get_buffer("negative").fill_(self.signed)
        self.resize()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}negative")
        if saved is not None and not self.fitted:
            self.signed = bool(saved)
            self.resize()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def high(self) -> int:
        """The highest code."""
        return magnitudes(self.bits, self.signed)

    def sign(self, x: Tensor) -> Tensor:
        """-1 or 1, never 0; all 1 where the input is never negative."""
        ones = torch.ones_like(x)
        return ones.copysign_(x.detach()) if self.signed else ones


class CompandingActivation(MagnitudeQuantizer):
    """`sign(x) s expand(round(compress(|x| / s)))`, `s = range / high`, with a learned range and a learned curve.

    Yamamoto 2021 (arXiv 2103.07156), as `CompandingQuantizer` for weights, without normalization. intervals: pieces of
    the curve; none where the codes are only 0 and 1. start: initial range; None: that of least squared error.
    """

    MIN_RANGE = 1e-5
    log_slopes: nn.Parameter | None

    def __init__(self, bits: int, signed: bool = True, intervals: int = 16, start: float | None = None) -> None:
        super().__init__(bits, signed)
        self.intervals, self.start = intervals, start
        self.learned_range = nn.Parameter(torch.ones(()))
        self.resize()

    def resize(self) -> None:
        slopes = nn.Parameter(self.learned_range.new_zeros(self.intervals)) if self.high > 1 else None
        self.register_parameter("log_slopes", slopes)

    def start_from(self, observed: Observed) -> None:
        super().start_from(observed)
        self.learned_range.fill_(max(self.start or reach_of(observed, self.bits), self.MIN_RANGE))

    def compressor(self) -> Curve:
        """The compressor, in units of codes, with its gradient."""
        logs = self.learned_range.new_zeros(self.intervals) if self.log_slopes is None else self.log_slopes
        return curve(logs, self.high)

    def forward(self, x: Tensor) -> Tensor:
        self.require_fitted()
        step, sign = self.learned_range / self.high, self.sign(x)
        inside = clip(sign * x / safe_step(step), 0, self.high)
        if self.log_slopes is None:
            return sign * (step * round_ste(inside))
        by = self.compressor()
        return sign * (step * expand_codes(round_ste(compress(inside, by)), self.high, by))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        sign = self.sign(x)
        inside = (sign * x * self.high / self.learned_range).clamp_(0, self.high)
        if self.log_slopes is not None:
            inside = compress(inside, self.compressor())
        return (sign * inside.round_()).to(torch.int16)

    @torch.no_grad()
    def project(self) -> None:
        """Keep the range at MIN_RANGE or more; call after the optimizer has moved it."""
        self.learned_range.clamp_(min=self.MIN_RANGE)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """The same curve over the same range (keep_range), or over one with the same mean step (keep_step)."""
        if bits == self.bits:
            return self
        other = type(self)(bits, self.signed, self.intervals, self.start)
        factor = 1.0 if scale == "keep_range" else other.high / self.high
        other.learned_range = nn.Parameter(self.learned_range.detach() * factor)
        if self.log_slopes is not None and other.log_slopes is not None:
            other.log_slopes = nn.Parameter(self.log_slopes.detach().clone())
        other.fitted = self.fitted
        return other.train(self.training)

    def described(self) -> str:
        return f"range={shown(self.learned_range)}, {self.intervals} intervals"


class ClampedQuantizer(MagnitudeQuantizer):
    """Even levels from 0 to 1, or from -1 to 1 for inputs with negative values, whatever the input's range.

    DoReFa's quantizer of activations (Zhou et al. 2016, arXiv 1606.06160, section 2.3), which clamps to [0, 1]; the
    form with a sign is an addition. Nothing is fitted but the sign.
    """

    keeps_range = True

    def grid(self, x: Tensor) -> Grid:
        self.require_fitted()
        return self.grid_at(x, self.bits)

    def grid_at(self, x: Tensor, bits: int) -> Grid:
        """The grid at a bit-width."""
        high = magnitudes(bits, self.signed)
        return Grid(x.new_tensor(1 / high), -high if self.signed else 0, high)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """Range and levels follow from the bits alone, whatever `scale` says."""
        other = ClampedQuantizer(bits, self.signed)
        other.fitted = self.fitted
        return other.train(self.training)

    def described(self) -> str:
        return "range=-1...1" if self.signed else "range=0...1"
