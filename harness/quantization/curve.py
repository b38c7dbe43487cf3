"""The compressor of companding and its inverse, the expander: piecewise linear maps of [0, high] onto itself.

The compressor's intervals have equal width. Its parameters are the logarithms of its slopes. If all slopes are equal,
compressor and expander are the identity to the last bit, since both work in units of the integer codes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: The largest difference between the logarithms of two slopes; smaller slopes are raised to it. A slope of exp(-10)
#: times another is flat for all purposes, and in fp32 the ends of a flatter interval could coincide.
LOG_RATIO = 10.0  # as in harness/kernels/csrc/companding.c


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
    count = len(by.slopes)
    with torch.no_grad():
        # Scaled to round down, so the piece is at most one too low. NaN gives piece 0 here and stays NaN below.
        scale = (1 - 8 * torch.finfo(x.dtype).eps) * count / by.inputs[-1]
        piece = (x * scale).int().clamp_(0, count - 1)
        piece += x >= _lookup(by.inputs[1:], piece)
    return _follow(x, piece, by.inputs, by.outputs, by.slopes)


def expand(y: Tensor, by: Curve) -> Tensor:
    """The inverse of `compress`, with the same guarantees. For small tables only: it searches for each y."""
    with torch.no_grad():
        piece = torch.bucketize(y.contiguous(), by.outputs[1:], right=True, out_int32=True)
    return _follow(y, piece, by.outputs, by.inputs, 1 / by.slopes)


def expand_codes(codes: Tensor, high: int, by: Curve) -> Tensor:
    """`expand(codes, by)` and its gradient, for integers from 0 to high, from a table of all of them."""
    at = codes.detach()
    every = torch.arange(high + 1, dtype=at.dtype, device=at.device)
    with torch.no_grad():
        knot = torch.bucketize(every, by.outputs[1:-1], right=True, out_int32=True)
        index = at.int().clamp_(0, high)
    # The second term is 0; it carries the gradient of the codes.
    return _lookup(expand(every, by), index) + _lookup(_lookup(1 / by.slopes, knot), index) * (codes - at)


def _follow(x: Tensor, piece: Tensor, source: Tensor, target: Tensor, slopes: Tensor) -> Tensor:
    """The piecewise linear map of the knots `source` to the knots `target`.

    piece: int32, the index of the last knot <= x, up to the final knot. If source and target agree, `x - knot` is
    exact, so the result is x itself.
    """
    with torch.no_grad():
        # Each operation below rounds monotonically, so only the end of an interval may exceed the next knot. There the
        # slope is reduced slightly.
        width, rise = source.diff(), target.diff()
        beyond = target[:-1] + slopes * width > target[1:]
        less = torch.where(beyond, rise / width * (1 - 8 * torch.finfo(x.dtype).eps), slopes) - slopes
    slopes = slopes + less
    slopes = torch.cat([slopes, slopes[-1:]])
    return _lookup(target, piece) + _lookup(slopes, piece) * (x - _lookup(source, piece))


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for a table (K,), in the shape and memory layout of `index`.

    By index_select: the gradient of indexing took 50 times as long on a CPU (torch 2.15, K = 16).
    """
    order = sorted(range(index.dim()), key=index.stride, reverse=True)
    dense = index.permute(order)  # in memory order, also for channels-last weights
    found = table.index_select(0, dense.reshape(-1)).view(dense.shape)
    return found.permute([order.index(dimension) for dimension in range(index.dim())])
