"""Grids as lists of values: those of each quantizer, the nearest one, and the neighbours."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.quantization import (
    ClippedQuantizer,
    CompandingQuantizer,
    DecoupledQuantizer,
    DoReFaQuantizer,
    FrozenQuantizer,
    LSQQuantizer,
    MaxAbsQuantizer,
    StatisticalQuantizer,
    WeightQuantizer,
)
from harness.quantization.value_grid import ValueGrid

Make = Callable[[int, bool], WeightQuantizer]


def frozen(bits: int, per_channel: bool) -> WeightQuantizer:
    quantizer = FrozenQuantizer(LSQQuantizer(bits, per_channel).fit(weight()), weight())
    quantizer.freeze(weight() > 0.5, torch.ones(6, 3, 2, 2))
    return quantizer


def companding(bits: int, per_channel: bool) -> WeightQuantizer:
    quantizer = CompandingQuantizer(bits, per_channel).fit(weight())
    if quantizer.log_slopes is not None:
        torch.nn.init.normal_(quantizer.log_slopes, generator=torch.Generator().manual_seed(0))
    return quantizer


def decoupled(bits: int, per_channel: bool) -> WeightQuantizer:
    quantizer = DecoupledQuantizer(bits, per_channel).fit(weight())
    with torch.no_grad():
        quantizer.level_step.mul_(0.7)
        quantizer.shrink.fill_(0.9)
    return quantizer


NEAREST: dict[str, Make] = {
    "max": MaxAbsQuantizer,
    "mse": lambda bits, per_channel: ClippedQuantizer(bits, per_channel).fit(weight()),
    "lsq": lambda bits, per_channel: LSQQuantizer(bits, per_channel).fit(weight()),
    "lsq full": lambda bits, per_channel: LSQQuantizer(bits, per_channel, "full").fit(weight()),
    "statsq": StatisticalQuantizer,
    "dorefa": DoReFaQuantizer,
}
OTHERS: dict[str, Make] = {"frozen": frozen, "companding": companding, "decoupled": decoupled}
ALL = {**NEAREST, **OTHERS}


def weight() -> Tensor:
    return torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", ALL)
def test_the_values_are_those_that_the_quantizer_gives(kind: str, bits: int, per_channel: bool) -> None:
    quantizer = ALL[kind](bits, per_channel)
    values = quantizer.values(weight())
    assert values.shape == (6 if per_channel else 1, quantizer.levels.high - quantizer.levels.low + 1)
    assert bool((values.diff() > 0).all())
    rounded = quantizer(weight()).detach().flatten(1)
    own = values.expand(6, -1)
    assert all(bool(torch.isin(row, some).all()) for row, some in zip(rounded, own)), "to the last bit"
    if kind in NEAREST:
        assert torch.equal(ValueGrid(values).nearest(weight().flatten(1)), rounded)


@pytest.mark.parametrize("kind", ["max", "statsq"])
def test_zeros_have_values_of_zero(kind: str) -> None:
    zeros = torch.zeros(2, 3)
    values = NEAREST[kind](3, True)(zeros) * 0 + NEAREST[kind](3, True).values(zeros)[:, :3]
    assert torch.equal(values, zeros)
    assert torch.equal(ValueGrid(NEAREST[kind](3, True).values(zeros)).nearest(zeros), zeros)


ROWS = torch.tensor([[-2.0, 0.0, 1.0], [-1.0, 0.5, 4.0]])


def test_nearest_by_hand() -> None:
    found = ValueGrid(ROWS).nearest(torch.tensor([[-9.0, 0.5, 0.51, 9.0], [0.5, 2.2, 2.3, -0.3]]))
    assert found.tolist() == [[-2, 0, 1, 1], [0.5, 0.5, 4, -1]]
    assert ValueGrid(ROWS[:1]).nearest(torch.tensor([[0.6], [-1.2]])).tolist() == [[1], [-2]]


def test_neighbours_by_hand() -> None:
    weights = torch.tensor([[-9.0, -2.0, -0.1, 0.0, 0.2, 1.0, 9.0]])
    lower, upper = ValueGrid(ROWS[:1]).neighbours(weights)
    assert lower.tolist() == [[-2, -2, -2, 0, 0, 1, 1]]
    assert upper.tolist() == [[-2, 0, 0, 1, 1, 1, 1]]
    lower, upper = ValueGrid(ROWS).neighbours(torch.tensor([[0.6], [0.6]]))
    assert (lower.tolist(), upper.tolist()) == ([[0], [0.5]], [[1], [4]])
