"""Functions with custom gradients; that of rounding is the straight-through estimator.

Bengio, Léonard, Courville 2013, arXiv 1308.3432.

None has a `setup_context`: for that torch inspects the signature of `forward` in each call, which takes 12 µs.
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
    """A Function, since `x + (value - x).detach()` is not exactly `value` in floating point."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` to the last bit, with gradient 1 to `x` everywhere. Same shapes; differentiable twice."""
    if _in_operations(x):
        return value + (x - x.detach())  # the difference is exactly 0, with gradient 1
    return _StraightThrough.apply(value, x)


def round_ste(x: Tensor) -> Tensor:
    """`round(x)`, halves to even, with gradient 1 everywhere. Any shape; differentiable twice."""
    return straight_through(x.detach().round(), x)


class _ScaleGradient(torch.autograd.Function):
    """Also a Function, so that the value is unchanged to the last bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Any) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """`x` unchanged, with its gradient multiplied by `factor`, a number or a tensor (). Any shape."""
    if _in_operations(x):
        return x.detach() + (x - x.detach()) * factor
    return _ScaleGradient.apply(x, factor)


#: A value beyond a bound by less than this, in steps, counts as inside. If the range ends at the largest weight, an ulp
#: in `w / s` must not decide whether that weight has a gradient.
BOUND_SLACK = 1e-4


def inside(x: Tensor, low: float | Tensor, high: float | Tensor, slack: float = BOUND_SLACK) -> Tensor:
    """Whether each value is in [low, high], bounds included; bool, same shape."""
    return (x >= low - slack) & (x <= high + slack)


class _Clip(torch.autograd.Function):
    """Not torch.clamp: its gradient at the bounds differs between versions of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Any, high: Any, slack: float) -> Tensor:
        ctx.save_for_backward(inside(x, low, high, slack))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None, None


def clip(x: Tensor, low: float | Tensor, high: float | Tensor, slack: float = BOUND_SLACK) -> Tensor:
    """`x` clipped to [low, high], with gradient 1 inside, bounds included, and 0 outside. Any shape.

    low, high: two numbers, or two tensors that broadcast to x. slack: how far beyond them the gradient is still 1.
    """
    if _in_operations(x):
        constant: Any = x.detach()
        clipped = constant.clamp(low, high)
        return torch.where(inside(constant, low, high, slack), clipped + (x - constant), clipped)
    return _Clip.apply(x, low, high, slack)


class FusedPass(Protocol):
    """A function of tensors whose value and gradient are computed by fused passes. All three methods take the tensors.

    forward: the value. backward: first takes the gradient of the value; returns one gradient per tensor, or None.
    plain: the value by differentiable operations.
    """

    @property
    def forward(self) -> Callable[..., Tensor]: ...
    @property
    def backward(self) -> Callable[..., tuple[Tensor | None, ...]]: ...
    @property
    def plain(self) -> Callable[..., Tensor]: ...


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: FusedPass, *inputs: Tensor) -> Tensor:
        ctx.passes = passes
        ctx.save_for_backward(*inputs)
        return passes.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, twice = ctx.saved_tensors, torch.is_grad_enabled()
        if not twice and dispatch.eager(gradients[0], *inputs):
            return None, *ctx.passes.backward(gradients[0], *inputs)
        # Double backward, which needs a graph, or a batch of gradients at once. Of views, since an input may depend on
        # another one, and the gradient through it is not this function's to give.
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [x.view_as(x) for x in inputs]
            value = ctx.passes.plain(*inputs).to(gradients[0].dtype)
        ends = [x for x, needs in zip(inputs, needed, strict=True) if needs]
        found = iter(torch.autograd.grad(value, ends, gradients[0], create_graph=twice))
        return None, *(next(found) if needs else None for needs in needed)


def gives_bf16(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks the `forward` of a quantizer that takes `bf16`: whether to give its value in bf16, where a pass makes it.

    It is what autocast would make of the value in fp32, and saves a pass over it, and one over its gradient.
    """
    forward.gives_bf16 = True  # type: ignore[attr-defined]
    return forward


def by_passes(passes: FusedPass, *inputs: Tensor) -> Tensor:
    """`passes.forward(*inputs)` with the gradient of `passes.backward`; differentiable twice by `passes.plain`."""
    return _Fused.apply(passes, *inputs)


@dataclass
class ClosedForm:
    """A scalar on the CPU, computed from `x` without a graph, with a gradient in closed form.

    gradient_of(x, factor): the gradient of factor * value, shape of x. plain: the value by differentiable operations.
    """

    value: Tensor
    gradient_of: Callable[[Tensor, float], Tensor]
    plain: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.value.clone()

    def backward(self, gradient: Tensor, x: Tensor) -> tuple[Tensor]:
        return (self.gradient_of(x, float(gradient)),)
