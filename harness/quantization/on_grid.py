"""Activations on a grid `step * k`, k an integer between two codes. One pass in C each way, where it serves."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.kernels import cpu, dispatch
from harness.quantization.autograd import by_passes, clip, round_ste
from harness.quantization.grid import safe_step


class Grid(NamedTuple):
    """The step and the lowest and highest code: numbers, or tensors that broadcast to the input.

    More than one step: one for each index of the leading dimensions, with sizes 1 in the others.
    """

    step: Tensor
    low: Tensor | float
    high: Tensor | float


def affine_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """The grid of 2^bits levels over a range with low <= 0 <= high; shapes as given.

    The zero point is rounded to a code, so the last level on either side may be half a step inside the range.
    """
    top = 2**bits - 1
    step = (high - low) / top
    zero = (-low / safe_step(step)).round().clamp(0, top)
    return Grid(step, -zero, top - zero)


def fake_quantize(x: Tensor, grid: Grid, slack: float) -> Tensor:
    """An input on a grid, same shape: straight-through up to `slack` steps beyond the last level, gradient 0 outside.

    The step gets its gradient, that of `step * clip(round(x / step))`, where it requires one.
    """
    if not dispatch.eager(x) or not x.is_cpu:
        return _plain(x, *grid, slack)
    order = list(range(x.dim())) if grid.step.numel() > 1 else _order(x)
    dense = x.permute(order)
    if not _rows_are_dense(dense, grid.step):
        dense = dense.contiguous()
    if not dispatch.serves(dense):
        return _plain(x, *grid, slack)
    codes = [torch.as_tensor(each, dtype=torch.float32) for each in (grid.low, grid.high)]
    result = by_passes(_Passes(slack, grid.step.requires_grad), dense, grid.step, *codes)
    return result.permute([order.index(place) for place in range(x.dim())])


def _plain(x: Tensor, step: Tensor, low: Tensor | float, high: Tensor | float, slack: float) -> Tensor:
    """The same by differentiable operations."""
    return step * round_ste(clip(x / safe_step(step), low, high, slack))


def _order(x: Tensor) -> list[int]:
    """The dimensions as they are in memory, so that permuted by it a transposed tensor is dense."""
    places, strides = range(x.dim()), x.stride()
    return list(places) if dispatch.alike_in_memory(x) else sorted(places, key=lambda place: -strides[place])


def _rows_are_dense(x: Tensor, step: Tensor) -> bool:
    """Whether what shares a step is in one piece, piece after piece."""
    by_sample = step.numel() == 1 or step.numel() == len(x)
    return dispatch.alike_in_memory(x) if by_sample else x.is_contiguous()


@dataclass
class _Passes:
    """`step * clip(round(x / step), low, high)` and its gradients, each one pass over the input."""

    slack: float
    learned: bool

    def forward(self, x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return cpu.on_grid(x, *self._rows(step, low, high))

    def backward(
        self, gradient: Tensor, x: Tensor, step: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient = dispatch.alike(gradient, x)
        of_x, pulls = cpu.on_grid_backward(x, gradient, *self._rows(step, low, high), self.slack)
        return of_x, pulls.view(step.shape) if self.learned else None, None, None

    def plain(self, x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _plain(x, step, low, high, self.slack)

    @staticmethod
    def _rows(step: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: fp32 (groups,)."""
        one, two, three = (each.detach().float().expand_as(step).flatten().contiguous() for each in (step, low, high))
        return one, two, three
