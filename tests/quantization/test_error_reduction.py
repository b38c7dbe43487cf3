"""ERQ's two halves on one layer: ridge regression, flips that lower J, halves that make up for each other."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.config_base import QuantizerConfig
from harness.quantization import make_quantizer
from harness.quantization.error_reduction import (
    ColumnGrids,
    against_activation_error,
    against_weight_error,
    refined,
    ridge_of,
)
from harness.quantization.value_grid import ValueGrid

ROWS, INPUTS, TOKENS = 20, 12, 300


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated inputs with a mean, and what a coarse quantizer makes of them, float64 (1, T, I)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64)
    x = torch.randn(1, TOKENS, INPUTS, generator=generator, dtype=torch.float64) @ mixing + 0.5
    step = float(x.abs().max()) / 4
    return x, (x / step).round() * step


def layer(bits: int = 3, seed: int = 0, scale: float = 1.0, bias: bool = True) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Weights (1, R, K), the bias last; means of x' x'^T and x' x^T; the grid of the weights."""
    weight = torch.randn(1, ROWS, INPUTS + bias, generator=torch.Generator().manual_seed(seed)).double()
    x, seen = (with_one(scale * each) if bias else scale * each for each in inputs(seed))
    return weight, mean(seen, seen), mean(seen, x), grid_of(weight[..., :INPUTS], bits)


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def mean(x: Tensor, y: Tensor) -> Tensor:
    return x.transpose(1, 2) @ y / x.shape[1]


def grid_of(weight: Tensor, bits: int) -> ColumnGrids:
    return ColumnGrids((torch.ones(INPUTS, dtype=torch.bool), values_of(weight, bits)))


def values_of(weight: Tensor, bits: int) -> Tensor:
    matrix = weight.flatten(0, 1).float()
    return make_quantizer(QuantizerConfig(), bits).fit(matrix).values(matrix)


def proxy(error: Tensor, gram: Tensor) -> Tensor:
    """J of each row, (G, R)."""
    return (error @ gram * error).sum(-1)


def output_error(found: Tensor, weight: Tensor, seed: int = 0) -> float:
    """Mean squared distance of the outputs for rounded inputs from the float ones."""
    x, seen = (with_one(each) if found.shape[2] > INPUTS else each for each in inputs(seed))
    return float((x @ weight.transpose(1, 2) - seen @ found.transpose(1, 2)).square().sum(2).mean())


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_regression_ends_at_the_least_of_its_objective(bias: bool) -> None:
    weight, gram, cross, _ = layer(bias=bias)
    ridge = ridge_of(gram, INPUTS, 0.1)
    found = against_activation_error(weight, gram, cross, ridge).requires_grad_()
    x, seen = (with_one(each) if bias else each for each in inputs())

    def objective(changed: Tensor) -> Tensor:
        off = (x @ weight.transpose(1, 2) - seen @ changed.transpose(1, 2)).square().sum(2).mean()
        return off + (ridge[:, None] * (changed - weight).square()).sum()

    value = objective(found)
    (slope,) = torch.autograd.grad(value, found)
    assert float(slope.abs().max()) < 1e-9 * float(gram.max())
    assert float(value.detach()) < 0.9 * float(objective(weight))


def test_lambda_is_a_part_of_the_mean_square_and_leaves_the_bias_free() -> None:
    _, gram, _, _ = layer()
    diagonal = gram[0].diagonal()
    expected = [0.25 * float(diagonal[:INPUTS].mean())] * INPUTS + [0.0]
    assert ridge_of(gram, INPUTS, 0.25)[0].tolist() == pytest.approx(expected)
    dead = torch.zeros(1, 3, 3, dtype=torch.float64)
    dead[0, 2, 2] = 1
    assert ridge_of(dead, 2, 0.25).tolist() == [[1, 1, 0]]
    weight = torch.ones(1, 4, 3, dtype=torch.float64)
    assert torch.equal(against_activation_error(weight, dead, dead, ridge_of(dead, 2, 0.1)), weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_refined_rounding_is_better_than_nearest(bits: int) -> None:
    weight, gram, _, grid = layer(bits, seed=bits, bias=False)
    lower, upper = grid.neighbours(weight, 0)
    up = refined(weight, (lower, upper), gram, 100)
    nearest = ValueGrid(grid.parts[0][1].values).nearest(weight[0])[None]
    own, rtn = (proxy(each - weight, gram) for each in (torch.where(up, upper, lower), nearest))
    assert bool((own <= rtn * (1 + 1e-9)).all())
    assert float(own.sum()) < 0.9 * float(rtn.sum())


@pytest.mark.parametrize("released", [False, True])
def test_no_flip_raises_j(released: bool) -> None:
    weight, gram, _, grid = layer(bias=False)
    ends = grid.neighbours(weight, 0)
    steps = [refined(weight, ends, gram, flips, released) for flips in range(12)]
    found = torch.stack([proxy(torch.where(up, ends[1], ends[0]) - weight, gram) for up in steps])
    assert bool((found.diff(dim=0) <= 1e-12 * found[:-1]).all())
    assert bool((found[1] < found[0]).any())
    changes = torch.stack([(a != b).sum(-1) for a, b in pairwise(steps)])
    assert int(changes.max()) == 1, "one weight of a row at a time"


def by_hand(weight: Tensor, lower: Tensor, upper: Tensor, gram: Tensor, flips: int, released: bool) -> list[bool]:
    """The rules for one row, in words of the addendum: gain s (|g| - s M_jj), or a step of length 1 down the slope."""
    up = [bool(u - w < w - low) for w, low, u in zip(weight, lower, upper)]
    for _ in range(flips):
        error = torch.where(torch.tensor(up), upper, lower) - weight
        slope = 2 * gram @ error
        candidates = [j for j in range(len(weight)) if error[j] * slope[j] > 0]
        if not candidates:
            break
        if released:
            place = max(candidates, key=lambda j: float(slope[j].abs()))
            wanted = error[place] - slope[place]
            above, below = upper[place] - weight[place] - wanted, lower[place] - weight[place] - wanted
            new = bool(above.abs() <= below.abs())
        else:
            gaps = upper - lower
            place = max(candidates, key=lambda j: float(gaps[j] * (slope[j].abs() - gaps[j] * gram[j, j])))
            new = not up[place]
        other = [*up[:place], new, *up[place + 1 :]]
        changed = torch.where(torch.tensor(other), upper, lower) - weight
        if changed @ gram @ changed >= error @ gram @ error:
            break
        up = other
    return up


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_both_rules_are_what_they_are_by_hand(scale: float, released: bool) -> None:
    weight, gram, _, grid = layer(scale=scale, bias=False)
    lower, upper = grid.neighbours(weight, 0)
    found = refined(weight, (lower, upper), gram, 100, released)[0]
    for row in range(ROWS):
        assert found[row].tolist() == by_hand(weight[0, row], lower[0, row], upper[0, row], gram[0], 100, released)


def test_the_scale_of_the_inputs_has_no_say_but_under_the_released_rule() -> None:
    results: dict[bool, list[Tensor]] = {}
    for released in (False, True):
        for scale in (1.0, 2.0**-6):
            weight, gram, _, grid = layer(scale=scale)
            ridge = ridge_of(gram, INPUTS, 0.1)
            found = against_weight_error(weight, gram, grid, INPUTS, ridge, 100, released)
            results.setdefault(released, []).append(found[:, :, :INPUTS])
    assert torch.equal(*results[False])
    assert not torch.equal(*results[True])
    weight, gram, _, grid = layer(scale=2.0**-6)
    unrefined = against_weight_error(weight, gram, grid, INPUTS, ridge_of(gram, INPUTS, 0.1), 0)
    assert torch.equal(results[True][1], unrefined[:, :, :INPUTS]), "no flip at all with small inputs"


def test_each_part_lowers_the_error_of_the_output() -> None:
    errors: dict[str, float] = dict.fromkeys(("nearest", "refined", "ridge", "ridge, refined", "full"), 0.0)
    for seed in range(3):
        weight, gram, cross, grid = layer(seed=seed)
        weight[..., INPUTS] = 0
        free, held = ridge_of(gram, INPUTS, 0.01), ridge_of(gram, INPUTS, 1e9)
        better = against_activation_error(weight, gram, cross, free)
        again = grid_of(better[..., :INPUTS], 3)
        settings: dict[str, tuple[Tensor, Any, Tensor, int]] = {
            "nearest": (weight, grid, held, 0),
            "refined": (weight, grid, held, 100),
            "ridge": (better, again, free, 0),
            "ridge, refined": (better, again, free, 100),
        }
        for name, (start, grids, ridge, flips) in settings.items():
            found = against_weight_error(start, gram, grids, INPUTS, ridge, flips)
            errors[name] += output_error(found, weight, seed)
    assert errors["nearest"] > errors["refined"] > errors["ridge, refined"]
    assert errors["nearest"] > errors["ridge"] > errors["ridge, refined"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
def test_every_weight_ends_on_the_grid_and_the_bias_makes_up_for_the_mean(bits: int, bias: bool) -> None:
    weight, gram, _, grid = layer(bits, bias=bias)
    found = against_weight_error(weight, gram, grid, INPUTS, ridge_of(gram, INPUTS, 0.1), 100)
    assert bool(torch.isin(found[:, :, :INPUTS], grid.parts[0][1].values).all())
    if bias:
        _, seen = inputs()
        outputs = with_one(seen) @ (found - weight).transpose(1, 2)
        assert float(outputs.mean(1).abs().max()) < 1e-9
        assert not bool(torch.isin(found[:, :, INPUTS], grid.parts[0][1].values).any())


def test_the_last_weight_without_a_bias_is_rounded_as_the_others() -> None:
    """The released code leaves it for a plain rounding at the end."""
    weight, gram, _, grid = layer(bias=False)
    found = against_weight_error(weight, gram, grid, INPUTS, ridge_of(gram, INPUTS, 1e-3), 100)
    alone = ValueGrid(grid.parts[0][1].values).nearest(weight[0, :, -1:])
    assert not torch.equal(found[0, :, -1:], alone), "it has made up for the others"


def test_groups_are_problems_of_their_own() -> None:
    both = [layer(seed=seed) for seed in (1, 2)]
    weight, gram = (torch.cat([each[place] for each in both]) for place in (0, 1))
    grid = grid_of(weight[..., :INPUTS], 3)
    together = against_weight_error(weight, gram, grid, INPUTS, ridge_of(gram, INPUTS, 0.1), 100)
    for place, (one, own, _, _) in enumerate(both):
        alone = against_weight_error(one, own, grid, INPUTS, ridge_of(own, INPUTS, 0.1), 100)
        torch.testing.assert_close(together[place : place + 1], alone, atol=1e-10, rtol=0)


def test_columns_may_have_grids_of_their_own() -> None:
    weight, gram, _, _ = layer()
    first = torch.arange(INPUTS) % 3 == 0
    parts = [(columns, values_of(weight[..., :INPUTS][..., columns], 2)) for columns in (first, ~first)]
    assert not torch.equal(parts[0][1], parts[1][1])
    found = against_weight_error(weight, gram, ColumnGrids(*parts), INPUTS, ridge_of(gram, INPUTS, 0.1), 100)
    for columns, values in parts:
        assert bool(torch.isin(found[..., :INPUTS][..., columns], values.double()).all())
