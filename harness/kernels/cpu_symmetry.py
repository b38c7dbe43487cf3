"""The passes of symreg, for a weight on the CPU: dense, fp32, of less than 2**31 numbers.

Each returns a value and its gradient: a function of the weight, of a factor and of a gradient like the weight. It adds
factor times the value's gradient to that in place, or returns it by itself where there is none.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from harness.kernels import library
from harness.kernels.cpu import BLOCK, peaks

SMALLEST = torch.finfo(torch.float32).tiny
#: Of large layers: a bucket is an fp32's bits without the sign, moved right by SHIFT; see csrc/symmetry.c.
SHIFT, BUCKETS = 12, 32768
_SHARES = 2


class Gradient(Protocol):
    """See above."""

    def __call__(self, weight: Tensor, factor: float, into: Tensor | None = None) -> Tensor: ...


Found = tuple[float, Gradient]


def by_sorting(weight: Tensor) -> Found:
    """The sum of |w + w'| over weights paired by rank from both ends: torch's sort, which is fast for small layers."""
    count = weight.numel()
    ordered, places = weight.as_strided((count,), (1,)).sort()
    sums = ordered + ordered.flip(0)  # each twice
    if count % 2:
        sums[count // 2] = 0
    value, signs = 0.5 * float(sums.abs().sum()), sums.sign_()

    def gradient(weight: Tensor, factor: float, into: Tensor | None = None) -> Tensor:
        out = torch.zeros_like(weight) if into is None else into
        out.as_strided((count,), (1,)).scatter_add_(0, places, signs * factor)
        return out

    return value, gradient


def by_counting(weight: Tensor) -> Found:
    """The same where weights whose sizes fall into one bucket count as equal; NaN where one is not finite."""
    peak = int(peaks(weight, 1).view(torch.int32))
    base, count = max(0, (peak >> SHIFT) - (BUCKETS - 1)), weight.numel()
    counts = torch.empty(_SHARES * 2 * BUCKETS, dtype=torch.int32)
    signs, value = torch.empty(2 * BUCKETS), torch.empty((), dtype=torch.float64)
    library.call("symmetry", weight, count, base, counts, signs, value)

    def gradient(weight: Tensor, factor: float, into: Tensor | None = None) -> Tensor:
        out = torch.empty_like(weight) if into is None else into
        library.call("mean_signs", weight, count, base, signs, out, factor, into is not None)
        return out

    return float(value), gradient


def of_fours(weight: Tensor) -> Found | None:
    """The sum of |sum| over two neighbouring pairs of the same ranks; None where a weight is not finite."""
    count, largest = weight.numel(), float(peaks(weight, 1))
    if not math.isfinite(largest):
        return None
    half = 1 << min(15, max(4, (count // 32).bit_length()))
    scale = half / largest if largest > half * SMALLEST else 0.0  # of zeros all are in one bucket
    signs, value = torch.empty_like(weight, dtype=torch.int8), torch.empty((), dtype=torch.float64)
    room, bucket_signs = torch.empty(12 * half + 1, dtype=torch.int32), torch.empty(2 * half, dtype=torch.int8)
    members, partial_sums = torch.empty(count, dtype=torch.int64), torch.empty(-(-count // BLOCK), dtype=torch.float64)
    library.call("symmetry_fours", weight, count, half, scale, signs, value, room, bucket_signs, members, partial_sums)

    def gradient(weight: Tensor, factor: float, into: Tensor | None = None) -> Tensor:
        out = torch.empty_like(weight) if into is None else into
        library.call("signed_factor", signs, out, count, factor, into is not None)
        return out

    return float(value), gradient
