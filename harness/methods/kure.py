"""Kurtosis regularization. Shkolnik, Chmiel, Banner, Shomron, Nahshan, Bronstein, Weiser, NeurIPS 2020
(arXiv 2002.07686, "Robust Quantization: One Model to Rule Them All").

The network trains in float. To the task loss is added, over L quantized layers of n_l weights,

    R = strength / L * sum_l (K(w_l) - target)^2,   K(w) = mean_i ((w_i - mu) / sigma)^4,

K a number for a whole weight, (O, I) or (O, I, kh, kw), mu its mean and sigma its standard deviation over n - 1, as in
the authors' code (torch.std). A uniform distribution has K = 1.8, a normal one 3, so the weights are flattened;
mean and spread are left alone, since K does not depend on them. mu and sigma take part in the gradient.

Means something without a bit-width, so needs no target_bit; the loop monitors accuracy there when one is given. What is
regularized is the weight that gets quantized: the latent one under `ste` and `lsq` (which the paper combines it with),
the effective one where a method of the stack fills weight_transform.

Sources of the defaults: strength 1 and target 1.8, all convolution and linear weights, averaged over layers (the
authors' code). Deviations: the first and last layers take part, as they are quantized here (the paper leaves them
float; `exclude` does the same); their fine-tuning schedule (learning rate 1e-3 until K is there) is the run's to set. A
weight shared by layers counts once, a frozen one not at all; a constant tensor, which has no kurtosis, adds 0.
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
    """K of a tensor of any shape, shape (); scale and shift change nothing.

    0 for a constant tensor, which has none; in fp32 so is one whose deviation is below 1e-8.
    """
    mean = weight.mean()
    squared = (weight - mean).square()
    variance = squared.sum() / max(1, weight.numel() - 1)
    spread = variance > _smallest_variance(weight.dtype, mean.detach())
    # Replaced before it divides, not after: a NaN in the branch not taken would still reach the gradient.
    divisor = torch.where(spread, variance.square(), torch.ones_like(variance))
    return torch.where(spread, squared.square().mean() / divisor, torch.zeros_like(variance))


def _smallest_variance(dtype: torch.dtype, mean: Tensor) -> Tensor:
    """The variance up to which a tensor of this type and mean counts as constant.

    Relative to the mean, since that of equal weights is rounded, and what this leaves is no spread; absolutely, so
    that a fourth power cannot come near the smallest number there is.
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
