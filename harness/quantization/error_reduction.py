"""The two halves of ERQ (Zhong et al. 2024, arXiv 2407.06794) for one layer: ridge regression and rounding refinement.

Shapes: G groups of R rows of K weights, the bias last where there is one. gram: means of x x^T over the rows x of the
rounded inputs, with a last number 1 for the bias, float64 (G, K, K).
"""

import torch
from torch import Tensor

from harness.quantization.value_grid import ValueGrid

#: What a flip must gain, as a part of the error that it makes by itself: more than rounding errors of the sums.
_LEAST_GAIN = 1e-9


class ColumnGrids:
    """The values that the weights of each column may become: one grid for all columns, or one for each part of them.

    parts: for each, whether a column belongs to it, bool (I,), and its values, as in ValueGrid.
    """

    def __init__(self, *parts: tuple[Tensor, Tensor]) -> None:
        self.parts = [(columns, ValueGrid(values.double())) for columns, values in parts]

    def neighbours(self, weight: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """The values below and above each weight, (G, R, S) each; the weights are of the columns from `start` on."""
        lower, upper = torch.empty_like(weight), torch.empty_like(weight)
        for columns, grid in self.parts:
            here = columns[start : start + weight.shape[2]]
            part = weight[:, :, here]
            below, above = grid.neighbours(part.flatten(0, 1))
            lower[:, :, here], upper[:, :, here] = below.view_as(part), above.view_as(part)
        return lower, upper


def ridge_of(gram: Tensor, inputs: int, strength: float) -> Tensor:
    """lambda of each column, (G, K): `strength` times the mean of x_j^2 over the `inputs` columns; 0 for the bias.

    1 in a group whose inputs are all 0, where it has no effect.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mean = diagonal[:, :inputs].mean(1, keepdim=True)
    found = torch.where(mean > 0, strength * mean, 1.0).expand_as(diagonal).clone()
    found[:, inputs:] = 0
    return found


def _solved(gram: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """(gram + diag(ridge))^-1 right."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram + torch.diag_embed(ridge)))


def against_activation_error(weight: Tensor, gram: Tensor, cross: Tensor, ridge: Tensor) -> Tensor:
    """W + D with the D of least `mean ||W x - (W + D) x'||^2 + sum ridge D^2`, float64 (G, R, K).

    x: the float inputs, x': the rounded ones. cross: means of x' x^T, as `gram` is of x' x'^T.
    """
    return weight + _solved(gram, ridge, (cross - gram) @ weight.transpose(1, 2)).transpose(1, 2)


def against_weight_error(
    weight: Tensor, gram: Tensor, grids: ColumnGrids, inputs: int, ridge: Tensor, flips: int, released: bool = False
) -> Tensor:
    """The weights rounded half by half, float64 (G, R, K): each half of the rest refined, the other one made up for it.

    Columns from `inputs` on, the bias, count in the halving and are not rounded. flips: see `refined`.
    """
    weight = weight.clone()
    start, count = 0, weight.shape[2]
    while start < inputs:
        stop = min(inputs, start + max(1, (count - start) // 2))
        here, rest = slice(start, stop), slice(stop, count)
        wanted = weight[:, :, here]
        lower, upper = grids.neighbours(wanted, start)
        up = refined(wanted, (lower, upper), gram[:, here, here], flips, released)
        rounded = torch.where(up, upper, lower)
        if stop < count:
            pushed = gram[:, rest, here] @ (rounded - wanted).transpose(1, 2)
            weight[:, :, rest] -= _solved(gram[:, rest, rest], ridge[:, rest], pushed).transpose(1, 2)
        weight[:, :, here] = rounded
        start = stop
    return weight


def refined(weight: Tensor, ends: tuple[Tensor, Tensor], gram: Tensor, flips: int, released: bool = False) -> Tensor:
    """Whether each weight is rounded up, bool (G, R, S): to nearest first, then flips that lower `J = e^T M e`.

    e: a row's errors, M: gram, (G, S, S). A flip takes a weight to its other neighbour among `ends`, the values below
    and above. In each of at most `flips` rounds every row makes the flip that lowers its J most, until none does.
    released: the flip of the released code instead, see `_released_flips`.
    """
    lower, upper = ends
    up = upper - weight < weight - lower
    diagonal = gram.diagonal(dim1=1, dim2=2)[:, None]
    error = torch.where(up, upper, lower) - weight
    slope = 2 * error @ gram
    for _ in range(flips):
        change = torch.where(up, lower - upper, upper - lower)
        gain = -change * (slope + change * diagonal)
        gain = torch.where(gain > _LEAST_GAIN * change.square() * diagonal, gain, 0.0)
        gain = gain * _released_flips(weight, ends, error, slope, up) if released else gain
        place = gain.argmax(2, keepdim=True)
        made = gain.gather(2, place) > 0
        if not bool(made.any()):
            break
        step = torch.where(made, change.gather(2, place), 0.0)
        slope += 2 * step * gram.gather(1, place.expand(-1, -1, gram.shape[2]))
        error.scatter_add_(2, place, step)
        up.scatter_(2, place, up.gather(2, place) ^ made)
    return up


def _released_flips(weight: Tensor, ends: tuple[Tensor, Tensor], error: Tensor, slope: Tensor, up: Tensor) -> Tensor:
    """The one flip of each row that the released code tries, if it does, bool (G, R, S).

    Of errors that have their slope's sign it takes the one of the largest slope, and goes a step of length 1 down that
    slope: to the neighbour nearer to e - slope, the upper one half-way. So the size of the inputs has a say.
    """
    candidates = torch.where(error * slope > 0, slope.abs(), 0.0)
    largest = torch.zeros_like(up).scatter_(2, candidates.argmax(2, keepdim=True), True) & (candidates > 0)
    wanted, (lower, upper) = error - slope, (each - weight for each in ends)
    return largest & ((upper - wanted <= wanted - lower) != up)
