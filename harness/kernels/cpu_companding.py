"""The passes of companding in C (harness/kernels/csrc/companding.c), for a weight on the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.kernels import library
from harness.kernels.cpu import scratch_for, sizes_of

#: As in harness/kernels/csrc/companding.c; TABLES: bytes, at least what its tables take.
MOST_INTERVALS, MOST_PLACES, PARTS, TABLES = 64, 194, 32, 8192


@dataclass
class Companding:
    """Passes over a weight whose codes are indices of levels, with what they share.

    reach: the ranges, fp32 (groups,); in deviations of the weight if `normalize`. log_slopes: of the curve, fp32 (K,),
    K up to MOST_INTERVALS. high: the largest code; beyond: the largest size, in steps, that counts as inside.
    """

    reach: Tensor
    log_slopes: Tensor
    high: int
    beyond: float
    normalize: bool

    def forward(self, weight: Tensor, bf16: bool = False) -> Tensor:
        """The weight at its levels, in fp32 or rounded to bf16."""
        out = torch.empty_like(weight, dtype=torch.bfloat16 if bf16 else torch.float32)
        self.places = torch.empty_like(weight, dtype=torch.uint8)
        library.call("compand", weight, *self._curve(weight), out, bf16, self.places)
        return out

    def codes(self, weight: Tensor) -> Tensor:
        """The codes, int8, like the weight."""
        out = torch.empty_like(weight, dtype=torch.int8)
        library.call("companded_codes", weight, *self._curve(weight), out)
        return out

    def _curve(self, weight: Tensor) -> tuple[Tensor | float, ...]:
        """What both passes take: sizes, the curve, and room for what they find of it."""
        groups, self.scratch = self.reach.numel(), scratch_for(weight, self.reach.numel())
        self.scales, self.tables = torch.empty(4 * groups), torch.empty(TABLES, dtype=torch.uint8)
        curve = self.reach, self.log_slopes, self.log_slopes.numel(), self.high, self.beyond, self.normalize
        return *sizes_of(weight, groups), *curve, self.scales, self.tables, self.scratch

    def backward(self, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """After `forward`: the gradients of the weight, of the ranges and of the logarithms of slopes."""
        out, ranges, slopes = torch.empty_like(weight), torch.empty_like(self.reach), torch.empty_like(self.log_slopes)
        sizes, given = sizes_of(weight, self.reach.numel()), (self.reach, self.normalize, self.scales, self.tables)
        rest = ranges, slopes, self.scratch, torch.empty(2 * PARTS * MOST_PLACES, dtype=torch.float64)
        library.call(
            "compand_backward", weight, grad, grad.dtype == torch.bfloat16, out, self.places, *sizes, *given, *rest
        )
        return out, ranges, slopes
