"""Functions with a gradient of their own. Rounding's is the straight-through estimator.

Bengio, Léonard, Courville 2013, arXiv 1308.3432.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.kernels import dispatch


def _in_operations(x: Tensor) -> bool:
    """Whether to make a gradient of differentiable operations: a Function would be lost. torch.compile knows them."""
    return not torch.compiler.is_compiling() and dispatch.transformed(x)


class _StraightThrough(torch.autograd.Function):
    """A Function of its own, since `x + (value - x).detach()` is not exactly `value` in floats."""

    @staticmethod
    def forward(value: Tensor, x: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` to the last bit, with the gradient of `x`, that is 1 everywhere. Same shapes; differentiable twice."""
    if _in_operations(x):
        return value + (x - x.detach())  # the difference is exactly 0, with gradient 1
    return _StraightThrough.apply(value, x)


def round_ste(x: Tensor) -> Tensor:
    """`round(x)`, halves to even, with gradient 1 everywhere. Any shape; differentiable twice."""
    return straight_through(x.detach().round(), x)


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
    if _in_operations(x):
        return x.detach() + (x - x.detach()) * factor
    return _ScaleGradient.apply(x, factor)


#: Beyond a bound by less than this, in steps, counts as inside: where a range ends at the largest weight, an ulp
#: in `w / s` must not decide whether that weight has a gradient.
BOUND_SLACK = 1e-4


def inside(x: Tensor, low: int, high: int) -> Tensor:
    """Whether each value is in [low, high], bounds included; bool, same shape."""
    return (x >= low - BOUND_SLACK) & (x <= high + BOUND_SLACK)


class _Clip(torch.autograd.Function):
    """Not torch.clamp, whose gradient at the bounds themselves differs between torch versions."""

    @staticmethod
    def forward(x: Tensor, low: int, high: int) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, low, high = inputs
        ctx.save_for_backward(inside(x, low, high))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None


def clip(x: Tensor, low: int, high: int) -> Tensor:
    """`x` clipped to [low, high], with gradient 1 inside, bounds included, and 0 outside. Any shape."""
    if _in_operations(x):
        constant = x.detach()
        clipped = constant.clamp(low, high)
        return torch.where(inside(constant, low, high), clipped + (x - constant), clipped)
    return _Clip.apply(x, low, high)


class FusedPass(Protocol):
    """A function of tensors whose value and gradient are fused passes. All three methods take the tensors.

    forward: the value. backward: a gradient for each tensor, None where there is none; its first argument is the
    gradient of the value. plain: the value by differentiable operations.
    """

    @property
    def forward(self) -> Callable[..., Tensor]: ...
    @property
    def backward(self) -> Callable[..., tuple[Tensor | None, ...]]: ...
    @property
    def plain(self) -> Callable[..., Tensor]: ...


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(passes: FusedPass, *inputs: Tensor) -> Tensor:
        return passes.forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.passes, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, twice = ctx.saved_tensors, torch.is_grad_enabled()
        if not twice and dispatch.eager(gradients[0], *inputs):
            return None, *ctx.passes.backward(gradients[0], *inputs)
        # Differentiated twice, so the gradient needs a graph of its own; or for a batch of gradients at once.
        needed = ctx.needs_input_grad[1:]
        ends = [x for x, needs in zip(inputs, needed, strict=True) if needs]
        with torch.enable_grad():
            value = ctx.passes.plain(*inputs)
        found = iter(torch.autograd.grad(value, ends, gradients[0], create_graph=twice))
        return None, *(next(found) if needs else None for needs in needed)


def by_passes(passes: FusedPass, *inputs: Tensor) -> Tensor:
    """`passes.forward(*inputs)` with the gradient of `passes.backward`; differentiable twice by `passes.plain`."""
    return _Fused.apply(passes, *inputs)


@dataclass
class ClosedForm:
    """A scalar on the CPU that was computed from `x` without a graph, with a gradient of closed form.

    gradient_of: of x and a factor, that of factor times the value, like x. plain: the value by differentiable
    operations.
    """

    value: Tensor
    gradient_of: Callable[[Tensor, float], Tensor]
    plain: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.value.clone()

    def backward(self, gradient: Tensor, x: Tensor) -> tuple[Tensor]:
        return (self.gradient_of(x, float(gradient)),)
