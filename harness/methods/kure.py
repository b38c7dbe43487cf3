"""Kurtosis regularization. Shkolnik, Chmiel, Banner, Shomron, Nahshan, Bronstein, Weiser, NeurIPS 2020
(arXiv 2002.07686, "Robust Quantization: One Model to Rule Them All").

Float training with a regularizer that makes the distribution of each layer's weights flatter, towards the uniform one.

Equations. The term added to the task loss, over L quantized layers, is

    R = strength / L * sum_l (K(w_l) - target)^2,   K(w) = mean_i ((w_i - mu) / sigma)^4.

K is one number per weight, (O, I) or (O, I, kh, kw). mu is its mean, sigma its standard deviation over n - 1, as in the
authors' code (torch.std); the gradient flows through both. A uniform distribution has K = 1.8, a normal one 3. K does
not depend on mean and spread, so these are not regularized.

Where it acts: on the weight that gets quantized. That is the latent weight under `ste` and `lsq` (which the paper
combines it with), and the effective one if a method of the stack fills weight_transform. A weight shared by layers
counts once, a frozen one not at all. A constant tensor has no kurtosis and adds 0.

Target bit: not needed, since no bit-width enters. If one is given, the loop monitors the accuracy at that bit-width.

Defaults: strength 1 (the authors' code) and target 1.8 (the paper; the code's option has no default), for all
convolution and linear weights.

Deviations: the mean over layers, where the code divides the sum by 19 for ResNet-18, 51 for MobileNetV2, 52 for
ResNet-50 (its layers without first and last) and by nothing for other networks; the first and last layers take part,
since they are quantized here (the paper leaves them in float; `exclude` does that); the fine-tuning schedule of the
paper (learning rate 1e-3 until K reaches the target) is left to the run's settings.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.kernels import cpu, dispatch
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization.autograd import ClosedForm, by_passes
from harness.quantization.layers import attach, trainable_layers


def kurtosis(weight: Tensor) -> Tensor:
    """K of a tensor of any shape, shape (); invariant to scale and shift.

    0 for a constant tensor. In fp32 a tensor with a deviation below 1e-8 counts as constant.
    """
    mean = weight.mean()
    squared = (weight - mean).square()
    variance = squared.sum() / max(1, weight.numel() - 1)
    spread = variance > _smallest_variance(weight.dtype, mean.detach())
    # Replaced before the division: a NaN in the branch not taken would still reach the gradient.
    divisor = torch.where(spread, variance.square(), torch.ones_like(variance))
    return torch.where(spread, squared.square().mean() / divisor, torch.zeros_like(variance))


def _smallest_variance(dtype: torch.dtype, mean: Tensor) -> Tensor:
    """The variance up to which a tensor of this type and mean counts as constant.

    Relative to the mean, since rounding the mean of equal weights leaves a small deviation. At least an absolute value,
    so that a fourth power stays far above the smallest number of the type.
    """
    limits = torch.finfo(dtype)
    return ((16 * limits.eps * mean) ** 2).clamp(min=1e3 * limits.tiny**0.5)


def kurtosis_loss(weight: Tensor, target: float, fused: bool = False) -> Tensor:
    """`(K - target)^2`, shape (); 0 with gradient 0 for a constant tensor.

    fused: whether passes in C (harness/kernels/csrc/kurtosis.c) may compute it, where they can.
    """
    if fused and dispatch.serves(weight):
        found = _by_passes_in_c(weight, target)
        if found is not None:
            return found
    value = kurtosis(weight)
    return torch.where(value > 0, (value - target).square(), torch.zeros_like(value))


def _by_passes_in_c(weight: Tensor, target: float) -> Tensor | None:
    """The same in closed form; None for a constant tensor. With z = (w - mu) / sigma and m3 the mean of z^3,

    dK/dw = 4 / (n sigma) (z^3 - m3) - 4 K z / ((n - 1) sigma).
    """
    count = weight.numel()
    mean, second, third, fourth = cpu.moments(weight)
    variance = second / max(1, count - 1)
    if not variance > _smallest_variance(weight.dtype, torch.tensor(mean, dtype=torch.float64)):
        return None
    deviation = math.sqrt(variance)
    value = fourth / count / variance**2

    def gradient(w: Tensor, factor: float) -> Tensor:
        outer = 2 * (value - target) * factor * 4 / deviation
        cubic = outer / count
        return cpu.standardized_cubic(
            w, mean, deviation, cubic, -outer * value / (count - 1), -cubic * third / count / deviation**3
        )

    passes = ClosedForm(torch.tensor((value - target) ** 2), gradient, lambda w: kurtosis_loss(w, target))
    return by_passes(passes, weight)


class Kurtosis(Method):
    """Float training whose weights are drawn towards a uniform distribution; deployed by rounding to nearest."""

    kind, acts_on = "regularizer", "weights"

    needs_target_bit = False

    class Config(MethodConfig):
        name: Literal["kure"] = "kure"
        strength: float = Field(1.0, ge=0, le=1e6, description="the paper's lambda (its code: 1); tune it")
        target: float = Field(
            1.8, ge=1, le=10, description="kurtosis aimed at (paper: 1.8, the uniform distribution's)"
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        layers = attach(model, self.context.exclude)
        self._layers = [layers[name] for name in trainable_layers(model, self.context.exclude)]
        if not self._layers:
            raise UserError("kure finds no trainable linear or convolution layer in this model")

    def penalty(self, step: Step) -> Tensor | float:
        if self.config.strength == 0:
            return 0.0
        target, fused = self.config.target, self.context.fused
        losses = [kurtosis_loss(layer.effective_weight(), target, fused) for layer in self._layers]
        return self.config.strength * torch.stack(losses).mean()

    def metrics(self) -> dict[str, float]:
        """The mean kurtosis of the layers."""
        with torch.no_grad():
            values = [kurtosis(layer.effective_weight()) for layer in self._layers]
            return {"kure/kurtosis": float(torch.stack(values).mean())}
