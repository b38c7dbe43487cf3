"""Grids of representable values: integer codes times a step. Pure functions, no state.

The whole project uses one form, `code = round(w / step)` (division, halves to even), since multiplying by the
reciprocal changes codes near rounding ties.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from harness.core.bits import MAX_BITS, MIN_BITS
from harness.core.errors import UserError

LevelsKind = Literal["symmetric", "full", "unsigned"]


class Levels(NamedTuple):
    """The lowest and highest integer code of a grid; `high` is Q in the papers."""

    low: int
    high: int


def levels(bits: int, kind: LevelsKind = "symmetric") -> Levels:
    """The codes of a grid of `bits` bits.

    symmetric: +-(2**(bits-1) - 1), so 2 bits is ternary. full: -2**(bits-1) to 2**(bits-1) - 1.
    unsigned: 0 to 2**bits - 1. Raises UserError outside 2 to 8 bits.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise UserError(f"bits: {bits!r} is no bit-width (legal: whole numbers from {MIN_BITS} to {MAX_BITS})")
    half = 2 ** (bits - 1)
    if kind == "unsigned":
        return Levels(0, 2 * half - 1)
    return Levels(-half if kind == "full" else -(half - 1), half - 1)


def middles(grid: Levels) -> Tensor:
    """The middles of the bins of a grid without a zero, in steps: code + 1/2, ascending, (L,)."""
    return torch.arange(grid.low, grid.high + 1) + 0.5


def max_abs(weight: Tensor, per_channel: bool) -> Tensor:
    """max|w|: shape () per tensor, (O, 1, ...) per output channel (dimension 0).

    Ties share its gradient evenly, as in torch's amax.
    """
    # Dimensions in full: the ONNX exporter knows no other form.
    return weight.abs().amax(dim=shared_dims(weight, per_channel), keepdim=per_channel)


def shared_dims(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """The dimensions over which weights share a step: all, or all but the first.

    A proxy of torch.fx knows them where it is a parameter; elsewhere (), which reductions take for all of them.
    """
    if isinstance(weight, Tensor):
        return tuple(range(1 if per_channel else 0, weight.dim()))
    if weight.node.op == "get_attr":
        return shared_dims(dict(weight.tracer.root.named_parameters())[weight.node.target], per_channel)
    if per_channel:
        raise UserError("torch.fx does not say how many dimensions an activation has, which a step per channel needs")
    return ()


def safe_step(step: Tensor) -> Tensor:
    """The step, with 0 replaced by 1, so that an all-zero tensor has codes 0 and gradient 0, never NaN."""
    return torch.where(step > 0, step, torch.ones_like(step))


def round_to_codes(weight: Tensor, step: Tensor, grid: Levels) -> Tensor:
    """Integer codes as floats, in [grid.low, grid.high]; same shape as `weight`, no gradient."""
    return (weight.detach() / safe_step(step.detach())).round_().clamp_(grid.low, grid.high)


#: The candidates of `clip_ratio`: 80 evenly spaced values from 1 to 0.2 (as in post-training quantization toolkits).
_RATIOS = tuple(torch.linspace(1.0, 0.2, 80, device="cpu").tolist())


def clip_ratio(weight: Tensor, grid: Levels, per_channel: bool) -> Tensor:
    """The fraction of max|w| at which clipping minimizes the squared quantization error.

    Shape () or (O, 1, ...); 1 for an all-zero tensor or channel.
    """
    weight = weight.detach()
    peak = max_abs(weight, per_channel)
    best_ratio, best_error = torch.ones_like(peak), torch.full_like(peak, torch.inf)
    dims = tuple(range(1, weight.dim())) if per_channel else tuple(range(weight.dim()))
    for ratio in _RATIOS:
        step = ratio * peak / grid.high
        error = (round_to_codes(weight, step, grid) * step - weight).square().sum(dim=dims, keepdim=per_channel)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return best_ratio
