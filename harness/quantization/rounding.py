"""Functions with a gradient of their own. Rounding's is the straight-through estimator.

Bengio, Léonard, Courville 2013, arXiv 1308.3432.
"""

from typing import Any

import torch
from torch import Tensor


class _RoundSTE(torch.autograd.Function):
    """A Function of its own, since `x + (round(x) - x).detach()` is not exactly `round(x)` in floats."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_ste(x: Tensor) -> Tensor:
    """`round(x)`, halves to even, with gradient 1 everywhere. Any shape; differentiable twice."""
    result: Tensor = _RoundSTE.apply(x)
    return result


class _ScaleGradient(torch.autograd.Function):
    """Again a Function, so that the value passes through untouched to the last bit."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` unchanged, with its gradient multiplied by `factor`. Any shape."""
    result: Tensor = _ScaleGradient.apply(x, factor)
    return result


class _Clip(torch.autograd.Function):
    """torch.clamp's gradient at the bounds themselves differs between torch versions; here they are inside."""

    @staticmethod
    def forward(x: Tensor, low: int, high: int) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, low, high = inputs
        ctx.save_for_backward((x >= low) & (x <= high))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def clip(x: Tensor, low: int, high: int) -> Tensor:
    """`x` clipped to [low, high], with gradient 1 inside, bounds included, and 0 outside. Any shape."""
    result: Tensor = _Clip.apply(x, low, high)
    return result
