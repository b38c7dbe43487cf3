"""Quantizers of activations whose step or range moves in training."""

import math

import torch
from torch import Tensor, nn

from harness.quantization.activations import LARGEST, ActivationQuantizer, RangeQuantizer
from harness.quantization.autograd import BOUND_SLACK, scale_gradient
from harness.quantization.grid import Levels, levels
from harness.quantization.observed import Observed
from harness.quantization.on_grid import Grid
from harness.quantization.quantizer import KeepScale, shown


class LearnedStepQuantizer(ActivationQuantizer):
    """Learned step size for an input (Esser et al. 2020, arXiv 1902.08153, equations 1 to 3).

    `q(x) = s clip(round(x / s), low, high)`, codes 0 to 2^b - 1 where the input is never negative, else -2^(b-1) to
    2^(b-1) - 1. The step is a parameter, `s0 = 2 mean|x| / sqrt(high)` of the observed input; its gradient is that of
    equation 3 times `1 / sqrt(N high)`, N the features of one sample. Call `project` after the optimizer.
    """

    MIN_STEP = 1e-5
    slack = BOUND_SLACK
    features: Tensor
    lowest: Tensor

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.learned_step = nn.Parameter(torch.ones(()))
        self.register_buffer("features", torch.ones(()))
        self.register_buffer("lowest", torch.tensor(float(self.levels.low)))  # the code, for `taken`

    @property
    def levels(self) -> Levels:
        """The lowest and highest code."""
        return levels(self.bits, "full" if self.signed else "unsigned")

    def start_from(self, observed: Observed) -> None:
        start = 2 * observed.mean_abs / math.sqrt(self.levels.high)
        self.learned_step.fill_(min(max(start, self.MIN_STEP), LARGEST / 2**self.bits))
        self.features.fill_(observed.features)
        self.lowest.fill_(self.levels.low)

    def taken(self) -> None:
        self.signed = bool(self.lowest < 0)

    def grid(self, x: Tensor) -> Grid:
        self.require_fitted()
        low, high = self.levels
        return Grid(scale_gradient(self.learned_step, (self.features * high).rsqrt()), low, high)

    def first_code(self, low: Tensor | float) -> float:
        """Codes are the integers k themselves."""
        return 0.0

    @torch.no_grad()
    def project(self) -> None:
        """Keep the step at least MIN_STEP; call after the optimizer has moved it."""
        self.learned_step.clamp_(min=self.MIN_STEP)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """keep_range keeps the largest level, keep_step the step."""
        if bits == self.bits:
            return self
        other = self.like(bits)
        factor = self.levels.high / other.levels.high if scale == "keep_range" else 1.0
        other.learned_step = nn.Parameter(self.learned_step.detach() * factor)
        other.features, other.fitted = self.features.clone(), self.fitted
        other.lowest = torch.full_like(self.lowest, other.levels.low)
        return other.train(self.training)

    def like(self, bits: int) -> "LearnedStepQuantizer":
        """One for another bit-width, with all that does not depend on it."""
        return type(self)(bits, self.signed)

    def described(self) -> str:
        low, high = self.levels
        return f"range={low} to {high} steps, step={shown(self.learned_step)}"


class MovingRangeQuantizer(RangeQuantizer):
    """A range per tensor that follows the extremes of the batches in training: an exponential moving average.

    Each forward pass in training mode moves both ends by `momentum` towards those of its batch, then rounds. Evaluation
    changes nothing. It starts from the observed extremes. momentum 0.1 averages over some ten batches, as batch norm
    does: runs here have tens of steps per epoch, in which 0.01 (torch's observers) would lag behind the weights.
    A batch with values that are not finite leaves the range as it is.
    """

    def __init__(self, bits: int, momentum: float = 0.1) -> None:
        super().__init__(bits)
        self.momentum = momentum

    def start_from(self, observed: Observed) -> None:
        self.set_range(*observed.range("max", self.bits))

    def forward(self, x: Tensor) -> Tensor:
        self.require_fitted()
        if self.training and x.numel():
            self.follow(x.detach())
        return super().forward(x)

    @torch.no_grad()
    def follow(self, x: Tensor) -> None:
        """Move the range towards the extremes of a batch."""
        low, high = x.aminmax()
        for end, found in ((self.low, low.clamp(-LARGEST, 0)), (self.high, high.clamp(0, LARGEST))):
            end.copy_(torch.where(low.isfinite() & high.isfinite(), end + (found - end) * self.momentum, end))

    def _like(self, bits: int) -> RangeQuantizer:
        return type(self)(bits, self.momentum)
