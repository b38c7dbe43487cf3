"""Search dimensions and static samplers."""

import math
import warnings
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.sweep.samplers import distribution
from harness.sweep.search_space import Choices, Range, Space, corners, draw

SPACE: Space = {
    "log": Range(low=1e-4, high=1e-1, log=True),
    "flat": Range(low=-2, high=3),
    "int": Range(low=1, high=4, kind="int"),
    "logint": Range(low=1, high=1000, kind="int", log=True),
    "step": Range(low=0.5, high=2, step=0.5),
    "choice": Choices(choices=("a", 2, None, True)),
}
LEGAL: dict[str, Any] = {
    "log": lambda value: isinstance(value, float) and 1e-4 <= value <= 1e-1,
    "flat": lambda value: isinstance(value, float) and -2 <= value <= 3,
    "int": lambda value: type(value) is int and value in (1, 2, 3, 4),
    "logint": lambda value: type(value) is int and 1 <= value <= 1000,
    "step": lambda value: value in (0.5, 1.0, 1.5, 2.0),
    "choice": lambda value: value in ("a", 2, None, True),
}
SAMPLERS = ("random", "grid", "qmc")
GOLDEN_RANDOM = [
    {"a": 3, "b": 0.7030550308262061},
    {"a": 3, "b": 0.4967550545880429},
    {"a": 3, "b": 0.3117181325511946},
]
GOLDEN_GRID = [3, 3, 1, 3, 2, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_depends_on_seed_and_number_alone(sampler: str) -> None:
    forwards = [draw(SPACE, sampler, 7, index) for index in range(16)]
    backwards = [draw(dict(reversed(SPACE.items())), sampler, 7, index) for index in reversed(range(16))]
    assert forwards == backwards[::-1]
    assert forwards != [draw(SPACE, sampler, 8, index) for index in range(16)]
    assert len({str(point) for point in forwards}) == 16


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_are_in_range(sampler: str) -> None:
    for index in range(200):
        for name, value in draw(SPACE, sampler, 3, index).items():
            assert LEGAL[name](value), (name, value)


@pytest.mark.parametrize("sampler", SAMPLERS[::2])
def test_draws_reach_everything(sampler: str) -> None:
    draws = [draw(SPACE, sampler, 3, index) for index in range(256)]
    assert {point["int"] for point in draws} == {1, 2, 3, 4}
    assert {point["step"] for point in draws} == {0.5, 1.0, 1.5, 2.0}
    assert {repr(point["choice"]) for point in draws} == {"'a'", "2", "None", "True"}
    below = sum(point["log"] < 10**-2.5 for point in draws)  # type: ignore[operator]  (half of a log range)
    assert 96 <= below <= 160  # 4 standard deviations of 256 fair coins


def test_random_draws_are_the_golden_ones() -> None:
    """A sweep that was begun must go on with the same draws after an upgrade."""
    space: Space = {"b": Range(low=0, high=1), "a": Choices(choices=(1, 2, 3))}
    assert [draw(space, "random", 1, index) for index in range(3)] == GOLDEN_RANDOM
    assert [draw(space, "grid", 1, index)["a"] for index in range(6)] == GOLDEN_GRID


def test_a_grid_visits_every_point_once_and_then_again() -> None:
    space: Space = {"a": Choices(choices=(1, 2, 3)), "b": Range(low=0, high=1, grid_points=4)}
    first = [tuple(draw(space, "grid", 5, index).items()) for index in range(12)]
    assert set(first) == {(("a", a), ("b", b)) for a in (1, 2, 3) for b in (0.0, 1 / 3, 2 / 3, 1.0)}
    assert [tuple(draw(space, "grid", 5, index).items()) for index in range(12, 24)] == first


def test_sobol_points_are_spread_evenly() -> None:
    space: Space = {"a": Range(low=0, high=1), "b": Range(low=0, high=1)}
    points = [draw(space, "qmc", 11, index) for index in range(16)]
    for name in space:  # 16 scrambled Sobol points: one in each sixteenth
        assert sorted(int(16 * point[name]) for point in points) == list(range(16))  # type: ignore[operator,arg-type]


def test_no_dimensions_no_values() -> None:
    assert [draw({}, sampler, 0, 3) for sampler in SAMPLERS] == [{}, {}, {}]


def test_a_sampler_that_looks_back_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler 'tpe' depends on earlier trials; static: random, grid, qmc"):
        draw(SPACE, "tpe", 0, 0)


@pytest.mark.parametrize(
    ("dimension", "position", "value"),
    [
        (Range(low=2, high=4), 0.0, 2.0),
        (Range(low=2, high=4), 0.5, 3.0),
        (Range(low=2, high=4), 1.0, 4.0),
        (Range(low=1, high=4, kind="int"), 0.0, 1),
        (Range(low=1, high=4, kind="int"), 0.2499, 1),
        (Range(low=1, high=4, kind="int"), 0.25, 2),
        (Range(low=1, high=4, kind="int"), 1.0, 4),
        (Range(low=1, high=9, kind="int", step=4), 0.5, 5),
        (Range(low=0, high=1, step=0.3), 1.0, 0.8999999999999999),
        (Choices(choices=("a", "b")), 0.4999, "a"),
        (Choices(choices=("a", "b")), 0.5, "b"),
        (Choices(choices=("a", "b")), 1.0, "b"),
    ],
)
def test_values_at_positions(dimension: Any, position: float, value: Any) -> None:
    assert dimension.at(position) == value
    assert type(dimension.at(position)) is type(value)


def test_a_log_range_is_even_in_the_logarithm_and_keeps_its_ends() -> None:
    dimension = Range(low=1e-4, high=1e-2, log=True)
    assert math.isclose(dimension.at(0.5), 1e-3, rel_tol=1e-12)  # exp and log round
    assert dimension.at(0.0) >= 1e-4
    assert dimension.at(1.0) <= 1e-2
    assert Range(low=0.3, high=30, log=True).at(1.0) <= 30


def test_points_hold_both_ends_without_repeats() -> None:
    assert Range(low=0, high=1, grid_points=3).points() == [0.0, 0.5, 1.0]
    assert Range(low=1, high=2, kind="int", grid_points=5).points() == [1, 2]
    assert Choices(choices=(3, 1)).points() == (3, 1)


def test_corners_visit_every_value_and_pad_the_shorter() -> None:
    space: Space = {"a": Choices(choices=(1, 2, 3)), "b": Choices(choices=("x", "y"))}
    assert corners(space) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "y"}]
    assert corners({}) == [{}]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low": 1, "high": 1}, "empty search range"),
        ({"low": 2, "high": 1}, "empty search range"),
        ({"low": 0, "high": 1, "log": True}, "a log range cannot start at 0"),
        ({"low": 0.1, "high": 1, "log": True, "step": 0.1}, "a log range has no step"),
        ({"low": 0.5, "high": 2, "kind": "int"}, "kind int wants whole ends"),
        ({"low": 1, "high": 9, "kind": "int", "step": 0.5}, r"kind int wants a whole step, not 0\.5"),
        ({"low": 1, "high": 9, "kind": "int", "step": 2.5}, r"kind int wants a whole step, not 2\.5"),
        ({"low": 1, "high": 9, "kind": "int", "step": 1.0001}, r"kind int wants a whole step, not 1\.0001"),
        ({"low": 0, "high": 1, "step": 0}, "greater than 0"),
        ({"low": 0, "high": 1, "grid_points": 1}, "greater than or equal to 2"),
        ({"low": 0, "high": math.inf}, "finite"),
    ],
)
def test_an_impossible_range_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Range.model_validate(settings)


def test_empty_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Choices(choices=())


@pytest.mark.parametrize(
    "dimension",
    [
        Range(low=1, high=9, kind="int", step=2),
        Range(low=1, high=10, kind="int", step=4),
        Range(low=-3, high=3, kind="int"),
        Range(low=0, high=1, step=0.3),
        Range(low=0.1, high=0.7, step=0.1),
        Range(low=0, high=1 - 1e-10, step=0.1),
    ],
)
def test_all_samplers_have_one_grid(dimension: Range) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's, of ends that it moves
        known: Any = distribution(dimension)
    visited = {dimension.at(index / 1000) for index in range(1001)}
    count = round((known.high - known.low) / known.step) + 1
    assert len(visited) == count
    assert sorted(visited) == pytest.approx([known.low + index * known.step for index in range(count)])
