"""The compressor of companding and its inverse, the expander: piecewise linear maps, and rounding by their tables."""

from typing import NamedTuple

import torch
from torch import Tensor

from harness.quantization.autograd import clip, round_ste
from harness.quantization.grid import safe_step

#: The largest difference between the logarithms of two slopes; smaller slopes are raised to it. A slope of exp(-10)
#: times another is flat for all purposes, and in fp32 the ends of a flatter interval could coincide.
LOG_RATIO = 10.0


class Curve(NamedTuple):
    """The compressor: its knots, (K + 1,) each, from (0, 0) to (high, high), and its K slopes, > 0, mean 1."""

    inputs: Tensor
    outputs: Tensor
    slopes: Tensor


def curve(log_slopes: Tensor, high: float, dtype: torch.dtype | None = None) -> Curve:
    """The compressor of [0, high] with slopes in proportion to `softmax(log_slopes)`, (K,), and its gradient."""
    # In double precision, so that the rounded knots still increase and end at `high`.
    logs, count = log_slopes.double(), len(log_slopes)
    shares = (logs - logs.detach().max()).clamp(min=-LOG_RATIO).exp()
    # Not cumsum, for which CUDA has no deterministic kernel.
    sums = (shares * torch.ones(count, count, dtype=logs.dtype, device=logs.device).tril()).sum(1)
    counts = torch.arange(count + 1, dtype=logs.dtype, device=logs.device)
    parts = (
        high * (counts / count),
        high * torch.cat([sums.new_zeros(1), sums / sums[-1]]),
        shares / (sums[-1] / count),
    )
    return Curve(*(part.to(dtype or log_slopes.dtype) for part in parts))


def compress(x: Tensor, by: Curve) -> Tensor:
    """The compressor at x in [0, high], any shape; monotone to the last bit, and exactly `high` at `high`."""
    return _follow(x, _piece(x, by.inputs), by.inputs, by.outputs, by.slopes)


def expand(y: Tensor, by: Curve) -> Tensor:
    """The inverse of `compress`, with the same guarantees. For small tables only: it searches for each y."""
    with torch.no_grad():
        piece = torch.bucketize(y.contiguous(), by.outputs[1:], right=True, out_int32=True)
    return _follow(y, piece, by.outputs, by.inputs, 1 / by.slopes)


def expand_codes(codes: Tensor, high: int, by: Curve) -> Tensor:
    """`expand(codes, by)` and its gradient, for integers from 0 to high, from a table of all of them."""
    return _at_codes(codes, *levels_of(high, by))


def levels_of(high: int, by: Curve) -> tuple[Tensor, Tensor]:
    """Of the codes from 0 to high: `expand`, and the expander's slope at each, (high + 1,) both."""
    every = torch.arange(high + 1, dtype=by.slopes.dtype, device=by.slopes.device)
    with torch.no_grad():
        knot = torch.bucketize(every, by.outputs[1:-1], right=True, out_int32=True)
    return expand(every, by), _lookup(1 / by.slopes, knot)


def _at_codes(codes: Tensor, levels: Tensor, rates: Tensor) -> Tensor:
    at = codes.detach()
    index = at.int().clamp_(0, len(levels) - 1)
    # The second term is 0; it carries the gradient of the codes.
    return _lookup(levels, index) + _lookup(rates, index) * (codes - at)


@torch.no_grad()
def _piece(x: Tensor, knots: Tensor) -> Tensor:
    """Which knot each x in [0, high] has reached, int32, the last one included."""
    count = len(knots) - 1
    # Scaled to round down, so the piece is at most one too low. NaN gives piece 0 here and stays NaN below.
    scale = (1 - 8 * torch.finfo(x.dtype).eps) * count / knots[-1]
    piece = (x * scale).int().clamp_(0, count - 1)
    piece += x >= _lookup(knots[1:], piece)
    return piece


def _follow(x: Tensor, piece: Tensor, source: Tensor, target: Tensor, slopes: Tensor) -> Tensor:
    """The piecewise linear map of the knots `source` to the knots `target`.

    piece: int32, the index of the last knot <= x, up to the final knot. If source and target agree, `x - knot` is
    exact, so the result is x itself.
    """
    return _along(x, piece, source, target, safe_slopes(source, target, slopes))


def safe_slopes(source: Tensor, target: Tensor, slopes: Tensor) -> Tensor:
    """The slopes to follow from each knot, (K + 1,), of which none leads past the next one."""
    with torch.no_grad():
        # Each operation of `_along` rounds without changing order, so only the end of an interval may pass the next
        # knot; where it would, a slope an ulp or so less.
        width, rise = source.diff(), target.diff()
        beyond = target[:-1] + slopes * width > target[1:]
        less = torch.where(beyond, rise / width * (1 - 8 * torch.finfo(source.dtype).eps), slopes) - slopes
    slopes = slopes + less
    return torch.cat([slopes, slopes[-1:]])


def _along(x: Tensor, piece: Tensor, source: Tensor, target: Tensor, slopes: Tensor) -> Tensor:
    return _lookup(target, piece) + _lookup(slopes, piece) * (x - _lookup(source, piece))


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for a table (K,), in the shape and memory layout of `index`.

    By index_select: the gradient of indexing took 50 times as long on a CPU (torch 2.15, K = 16).
    """
    order = sorted(range(index.dim()), key=index.stride, reverse=True)
    dense = index.permute(order)  # channels-last weights, too, are then in their order in memory
    found = table.index_select(0, dense.reshape(-1)).view(dense.shape)
    return found.permute([order.index(dimension) for dimension in range(index.dim())])


def by_tables(
    weight: Tensor, step: Tensor, source: Tensor, target: Tensor, slopes: Tensor, levels: Tensor, rates: Tensor
) -> Tensor:
    """The weight at its levels, from the tables of the compressor, (K + 1,) each, and of codes, (high + 1,) each."""
    sign = sign_of(weight)
    x = clip(sign * weight / safe_step(step), 0, len(levels) - 1)
    codes = round_ste(_along(x, _piece(x, source), source, target, slopes))
    return sign * (step * _at_codes(codes, levels, rates))


def sign_of(weight: Tensor) -> Tensor:
    """-1 or 1, never 0, so that a weight of 0 has a gradient."""
    return torch.ones_like(weight).copysign_(weight.detach())
