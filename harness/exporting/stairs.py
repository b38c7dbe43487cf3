"""Quantizers of magnitudes as tables: where each level starts, found from what they compute."""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.quantization.shaped_activations import MagnitudeQuantizer

#: Infinity in fp32, as an integer. Numbers from 0 have the order of their bits.
_INFINITY = 0x7F800000


@torch.no_grad()
def stairs(quantizer: MagnitudeQuantizer) -> tuple[Tensor, Tensor]:
    """The values of a quantizer's magnitudes: starts (m,), ascending, and levels (m + 1,), fp32, for codes up to m.

    The value of x >= 0 is `levels[k]`, k being the number of starts <= x, to the last bit, since starts are found by
    bisection among all numbers of fp32. A code that no x has starts where the next one does.
    """
    wanted = torch.arange(1, quantizer.high + 1)
    by_code = _first(lambda x: quantizer.codes(x) >= wanted, len(wanted))
    # Levels from between two starts: at a start itself the last bit may decide, in codes otherwise than in values.
    ends = torch.cat([by_code.new_zeros(1), by_code, by_code.new_full((1,), _INFINITY)])
    levels: Tensor = quantizer(_number(ends[:-1] + (ends[1:] - ends[:-1]) // 2))
    return _number(_first(lambda x: quantizer(x) >= levels[1:], len(wanted))), levels


def _first(holds: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The bits of the least numbers, (count,), for which something holds that holds for all larger ones, too."""
    low, high = torch.zeros(count, dtype=torch.int64), torch.full((count,), _INFINITY)
    while bool((low < high).any()):
        middle = (low + high) // 2
        there = holds(_number(middle))
        low, high = torch.where(there, low, middle + 1), torch.where(there, middle, high)
    return low


def _number(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)
