"""Ranges and grids of the rows of a matrix: asymmetric, clipped at the percentile of least squared error."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.quantization.grid import safe_step
from harness.quantization.on_grid import affine_grid

#: Percentiles that the released code of ERQ tries, for weights and for activations.
OF_WEIGHTS = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0)
OF_INPUTS = (0.999, 0.9999, 0.99999)
#: Numbers that torch.quantile takes at a time.
_MOST = 2**24
#: Rows' quantile beyond which a weight is an outlier, and output rows for each outlying column (released code).
_OUTLIER, _ROWS_PER_COLUMN = 0.99, 20


def row_ranges(rows: Tensor, bits: int, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The ends of each row's range, (R, 1) each, of a matrix (R, K): the percentile p and its counterpart 1 - p.

    Of all p the one of least squared error at that bit-width, the first of equal ones. Rows of more than 2^24 numbers
    are judged by that many of them, evenly spaced.
    """
    rows = rows.detach()[:, :: -(-rows.shape[1] // _MOST)]
    found = [_ends(part, bits, percentiles) for part in rows.split(max(1, _MOST // rows.shape[1]))]
    low, high = (torch.cat(each) for each in zip(*found, strict=True))
    return low, high


def _ends(rows: Tensor, bits: int, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    wanted = torch.tensor([*percentiles, *(1 - each for each in percentiles)], dtype=rows.dtype, device=rows.device)
    highs, lows = torch.quantile(rows, wanted, dim=1)[..., None].chunk(2)  # (P, R, 1) each
    best = torch.full_like(highs[0], torch.inf)
    low, high = lows[0], highs[0]
    top = 2**bits - 1
    for from_, to in zip(lows, highs, strict=True):
        step = (to - from_) / top
        codes = ((rows - from_) / safe_step(step)).round().clamp(0, top)
        error = (from_ + step * codes - rows).square().sum(1, keepdim=True)
        better = error < best
        best, low, high = (torch.where(better, a, b) for a, b in ((error, best), (from_, low), (to, high)))
    return low, high


def row_values(rows: Tensor, bits: int) -> Tensor:
    """The 2^bits values of each row's grid, ascending, (R, 2^bits): evenly spaced, 0 among them. rows: (R, K)."""
    low, high = row_ranges(rows, bits, OF_WEIGHTS)
    step, first, _ = affine_grid(low.clamp(max=0), high.clamp(min=0), bits)
    return step * (first + torch.arange(2**bits, device=rows.device))


def outlying_columns(rows: Tensor) -> Tensor:
    """Whether a column of a matrix (R, K) is among the R / 20 that most often hold outliers, bool (K,).

    An outlier is above 99 % of its row's positive, or below 99 % of its row's negative numbers. Of columns that are
    alike in that the earlier ones are taken, and none without outliers.
    """
    rows = rows.detach()
    positive, negative = rows.where(rows > 0, torch.nan), rows.where(rows < 0, torch.nan)
    above = rows > torch.nanquantile(positive, _OUTLIER, dim=1, keepdim=True)
    below = rows < torch.nanquantile(negative, 1 - _OUTLIER, dim=1, keepdim=True)
    counts = (above | below).sum(0)
    chosen = counts.argsort(descending=True, stable=True)[: len(rows) // _ROWS_PER_COLUMN]
    found = torch.zeros_like(counts, dtype=torch.bool)
    found[chosen] = True
    return found & (counts > 0)
