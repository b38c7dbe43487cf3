"""Means over seeds with Student-t intervals, which hold at three seeds where a bootstrap does not."""

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over `n` seeds; `half_width` is nan when one seed says nothing about the spread."""

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def pair(self) -> tuple[float, float]:
        """The two values that it is of, the lower one first. n must be 2, and its level `LEVEL`."""
        half = self.half_width / _quantile(LEVEL, 1)
        return self.mean - half, self.mean + half


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """`mean ± t(level, n-1) * sd / sqrt(n)`, with the n-1 standard deviation."""
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    # The standard library's are exact: equal values have no spread, where rounding would leave 1e-16 of it.
    mean = statistics.mean(values)
    if n == 1:
        return Interval(mean, math.nan, 1)
    return Interval(mean, _quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n), n)


@cache  # a sweep has thousands of intervals over the same few numbers of seeds
def _quantile(level: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees))


def separate_best(intervals: Sequence[Interval], higher_is_better: bool = True) -> int | None:
    """Index of the best mean if its interval lies wholly on the better side of the second best's, else None.

    One seed has no interval, so nothing can be said to lie above or below it.
    """
    sign = 1 if higher_is_better else -1
    order = sorted((i for i, interval in enumerate(intervals) if interval.n), key=lambda i: -sign * intervals[i].mean)
    if len(order) < 2:
        return None
    best, second = intervals[order[0]], intervals[order[1]]
    separate = best.low > second.high if higher_is_better else best.high < second.low
    return order[0] if separate else None  # False for nan
