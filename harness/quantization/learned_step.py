"""A weight quantizer whose step is learned. Esser et al. 2020, arXiv 1902.08153."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.kernels import cpu, dispatch
from harness.quantization.autograd import BOUND_SLACK, by_passes, clip, gives_bf16, round_ste, scale_gradient
from harness.quantization.grid import LevelsKind, safe_step
from harness.quantization.quantizer import ClippedQuantizer, KeepScale, MaxAbsQuantizer, WeightQuantizer, shown


class LSQQuantizer(WeightQuantizer):
    """Learned step size (Esser et al. 2020, arXiv 1902.08153, equations 1 to 3).

    The step is a parameter, `s0 = 2 mean|w| / sqrt(Q)`; its gradient is `k - w/s` inside the range and the
    clipped code outside, times `1 / sqrt(N Q)`, N weights per step. kind: "symmetric" (default) or "full".
    `fused` may be set to False for plain tensor operations, as a max-abs quantizer's.
    """

    MIN_STEP = 1e-5
    takes_values = True
    fused: bool = True

    def __init__(self, bits: int, per_channel: bool = False, kind: LevelsKind = "symmetric") -> None:
        super().__init__(bits, per_channel, kind)
        self.learned_step = nn.Parameter(torch.ones(()))

    def start_from(self, weight: Tensor) -> None:
        dims = tuple(range(1 if self.per_channel else 0, weight.dim()))
        start = 2 * weight.abs().mean(dim=dims, keepdim=self.per_channel) / math.sqrt(self.levels.high)
        self.learned_step = nn.Parameter(start.clamp(min=self.MIN_STEP))

    def described(self) -> tuple[str, str]:
        low, high = self.levels
        return f"{low} to {high} steps", shown(self.learned_step)

    def step(self, weight: Tensor) -> Tensor:
        self.require_fitted()
        weights_a_step = weight.numel() // self.learned_step.numel()
        factor = 1.0 / math.sqrt(weights_a_step * self.levels.high)
        return scale_gradient(self.learned_step, factor)

    @gives_bf16
    def forward(self, weight: Tensor, bf16: bool = False) -> Tensor:
        if self.fused and self.kind == "symmetric" and dispatch.serves(weight):
            return by_passes(_LearnedStep(self.levels.high, bf16), weight, self.step(weight))
        return super().forward(weight)

    @torch.no_grad()
    def project(self) -> None:
        """Keep the step at least MIN_STEP; call after the optimizer has moved it."""
        self.learned_step.clamp_(min=self.MIN_STEP)

    def at_bits(self, bits: int, scale: KeepScale) -> "WeightQuantizer":
        if bits == self.bits:
            return self
        other = type(self)(bits, self.per_channel, self.kind)
        factor = self.levels.high / other.levels.high if scale == "keep_range" else 1.0
        other.learned_step, other.fitted = nn.Parameter(self.learned_step.detach() * factor), self.fitted
        return other


@dataclass
class _LearnedStep:
    """`step * round(clip(weight / step, -high, high))` and its gradients, each one pass over the weight."""

    high: int
    bf16: bool

    def forward(self, weight: Tensor, step: Tensor) -> Tensor:
        return cpu.quantize(weight, step.flatten(), self.high, self.bf16)

    def backward(self, gradient: Tensor, weight: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        gradient = dispatch.alike(gradient, weight, bf16=True)
        of_weight, pulls = cpu.learned_step_backward(weight, gradient, step.flatten(), self.high, BOUND_SLACK)
        return of_weight, pulls.view(step.shape)

    def plain(self, weight: Tensor, step: Tensor) -> Tensor:
        return step * round_ste(clip(weight / safe_step(step), -self.high, self.high))


def on_plain_grid(quantizer: WeightQuantizer) -> bool:
    """Whether `q(w)` is `s * clip(round(w / s))` and nothing else, so that the step alone decides it."""
    kind = type(quantizer)
    if kind.forward is MaxAbsQuantizer.forward:
        return kind.plain in (MaxAbsQuantizer.plain, ClippedQuantizer.plain)  # type: ignore[attr-defined]
    return kind.forward in (WeightQuantizer.forward, LSQQuantizer.forward)
