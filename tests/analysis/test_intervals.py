"""Intervals and the bold decision, against numbers worked out by hand."""

import math

import pytest

from analysis.intervals import Interval, separate_best, t_interval


def test_interval_by_hand() -> None:
    # mean 2, sd 1, t(0.975, 2 degrees) = 4.302653 from a printed table: 4.302653 / sqrt(3) = 2.484138
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.n == 3
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(2.484138, rel=1e-6)
    # n = 2: sd = 1/sqrt(2), t(0.975, 1) = 12.706205, half-width = 12.706205 / 2
    assert t_interval([0.0, 1.0]).half_width == pytest.approx(6.3531024, rel=1e-6)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    interval = t_interval([0.5])
    assert (interval.mean, interval.n) == (0.5, 1)
    assert math.isnan(interval.half_width)
    assert t_interval([]).n == 0


def test_equal_values_have_an_interval_of_zero() -> None:
    assert t_interval([0.7, 0.7, 0.7]) == Interval(0.7, 0.0, 3)


@pytest.mark.parametrize(
    ("intervals", "best"),
    [
        ([Interval(97, 1, 3), Interval(94, 1.9, 3)], 0),
        ([Interval(94, 1.9, 3), Interval(97, 1, 3)], 1),
        ([Interval(97, 1, 3), Interval(94, 2.1, 3)], None),  # 96 against 96.1
        ([Interval(97, 1, 3), Interval(95, 1, 3)], None),  # they touch at 96
        ([Interval(97, 1, 3), Interval(90, math.nan, 1)], None),
        ([Interval(97, math.nan, 1), Interval(90, 1, 3)], None),
        ([Interval(97, 1, 3)], None),
        ([Interval(97, 1, 3), Interval(math.nan, math.nan, 0), Interval(90, 1, 3)], 0),
    ],
)
def test_bold_needs_an_interval_separate_from_the_second_best(intervals: list[Interval], best: int | None) -> None:
    assert separate_best(intervals) == best
