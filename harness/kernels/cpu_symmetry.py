"""The passes of symreg in C, for a weight on the CPU."""

import math

import torch
from torch import Tensor

from harness.kernels import library
from harness.kernels.cpu import BLOCK, peaks

SMALLEST = torch.finfo(torch.float32).tiny


def symmetry(weight: Tensor, fours: bool) -> tuple[float, Tensor] | None:
    """Of the weights paired by rank from both ends: the sum of |w + w'| over pairs, or, with `fours`, of |sum| over two
    neighbouring pairs, and the sign of that sum for each weight, int8, like it; 0 for one without a partner.

    None where a weight is not finite.
    """
    count = weight.numel()
    if count >= 2**31:
        return None
    signs, value = torch.empty_like(weight, dtype=torch.int8), torch.empty((), dtype=torch.float64)
    partial = torch.empty(-(-count // BLOCK), dtype=torch.float64)
    if fours:
        _by_buckets_of_both_signs(weight, signs, value, partial)
    else:
        half = 1 << min(16, max(4, (count // 16).bit_length()))
        room = torch.empty(28 * half, dtype=torch.uint8), torch.empty(2 * count, dtype=torch.int64)
        library.call("symmetry", weight, count, half, signs, value, *room, partial, torch.empty(partial.shape))
    return (float(value), signs) if math.isfinite(value) else None


def _by_buckets_of_both_signs(weight: Tensor, signs: Tensor, value: Tensor, partial: Tensor) -> None:
    """Sums of two neighbouring pairs; NaN where a weight is not finite."""
    count, largest = weight.numel(), float(peaks(weight, 1))
    if not math.isfinite(largest):
        value.fill_(math.nan)
        return
    half = 1 << min(15, max(4, (count // 32).bit_length()))
    scale = half / largest if largest > half * SMALLEST else 0.0  # of zeros all are in one bucket
    room, bucket_signs = torch.empty(12 * half + 1, dtype=torch.int32), torch.empty(2 * half, dtype=torch.int8)
    members = torch.empty(count, dtype=torch.int64)
    library.call("symmetry_fours", weight, count, half, scale, signs, value, room, bucket_signs, members, partial)


def signed_factor(signs: Tensor, factor: float) -> Tensor:
    """fp32, `factor` times int8 signs."""
    out = torch.empty_like(signs, dtype=torch.float32)
    library.call("signed_factor", signs, out, signs.numel(), factor)
    return out
