"""t tests of the difference of two trainings, Holm's correction and the verdict on a claim."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from analysis.intervals import LEVEL

#: A test decides where its adjusted p is below this; the level of the 95 % interval.
ALPHA = round(1 - LEVEL, 9)
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
#: With fewer on a side no test decides: a t test of two seeds rests on one difference between them.
LEAST_SEEDS = 3
PAIRED, WELCH = "paired t", "Welch t"

#: Decimals kept of every value. A difference of 1 point may be 1e-14 off in binary: seeds that agree would seem to have
#: a spread, and a mean on the margin to lie beside it. No accuracy or frequency is known to 1e-10.
_DECIMALS = 10


class Comparison(NamedTuple):
    """A mean difference with its 95 % t interval, and the two-sided p of the margin; nan where no test was possible.

    `test` is "paired t", "Welch t" or "" without one; `n` the pairs, or "3 + 2" for the seeds of either side.
    """

    test: str = ""
    n: str = "0"
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def compare(first: Mapping[int, float], second: Mapping[int, float], margin: float) -> Comparison:
    """`first` less `second`, values by seed (neither empty), tested against `margin` in the same unit.

    Paired over the seeds that both have, when there are 2 of them: what a seed decides (initial weights, order of the
    data) then cancels. Else Welch's, with 2 seeds on either side, of which one may be common. Else no test.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 2 <= min(len(first), len(second)):
        return welch_t(list(first.values()), list(second.values()), margin)
    if common:
        return paired_t([first[seed] - second[seed] for seed in common], margin)
    effect = statistics.mean(first.values()) - statistics.mean(second.values())
    return Comparison("", f"{len(first)} + {len(second)}", effect)


def paired_t(differences: Sequence[float], margin: float) -> Comparison:
    """The t test of the mean of `differences` against `margin`; of one difference the mean alone."""
    values = [round(value, _DECIMALS) for value in differences]
    n, mean = len(values), statistics.mean(values)
    if n < 2:
        return Comparison("", str(n), mean)
    return _tested(PAIRED, str(n), mean, statistics.stdev(values) / math.sqrt(n), n - 1, margin)


def welch_t(first: Sequence[float], second: Sequence[float], margin: float) -> Comparison:
    """Welch's t test of the difference of two means against `margin`, at least 2 values on either side."""
    rounded = [[round(value, _DECIMALS) for value in values] for values in (first, second)]
    effect = round(statistics.mean(rounded[0]) - statistics.mean(rounded[1]), _DECIMALS)
    parts = [statistics.variance(values) / len(values) for values in rounded]
    # Welch-Satterthwaite; without any spread the degrees of freedom do not matter.
    below = sum(part**2 / (len(values) - 1) for part, values in zip(parts, rounded))
    degrees = sum(parts) ** 2 / below if below else 1.0
    return _tested(WELCH, f"{len(first)} + {len(second)}", effect, math.sqrt(sum(parts)), degrees, margin)


def _tested(test: str, n: str, effect: float, error: float, degrees: float, margin: float) -> Comparison:
    """The interval and p of a mean with its standard error.

    Without spread there is neither: t has no value, and a p of 0 would claim a certainty that a few seeds do not give.
    """
    if error == 0:
        return Comparison(test, n, effect)
    from scipy.stats import t

    half_width = float(t.ppf(0.5 + LEVEL / 2, degrees)) * error
    p = 2 * float(t.sf(abs(effect - margin) / error, degrees))
    return Comparison(test, n, effect, effect - half_width, effect + half_width, p)


def adjusted(results: Sequence[Comparison]) -> list[float]:
    """Holm's adjusted p of each, in the order given, corrected for all that were tested: see `count`."""
    return holm([one.p for one in results], count(results))


def count(results: Iterable[Comparison]) -> int:
    """How many were tested. One without spread was, too, though it has no p: nobody chose it for its outcome."""
    return sum(bool(one.test) for one in results)


def holm(p_values: Sequence[float], tests: int = 0) -> list[float]:
    """Holm's adjusted p values, in the order given; nan stays nan. tests: made in all, if more than those with a p."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    highest, tests = 0.0, max(tests, len(order))
    for rank, i in enumerate(order):
        # Never below that of a smaller p, so that nothing is rejected after the first that is not.
        highest = max(highest, min(1.0, (tests - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def decide(result: Comparison, margin: float, p_holm: float, tests: int) -> tuple[str, str]:
    """The verdict on "the effect is above the margin" and why, if there is something to say; of `tests` in all.

    Below `LEAST_SEEDS` seeds, pairs or those of a side, there is none.
    """
    verdict, why = _decided(result, margin, p_holm, tests)
    few = min(map(int, result.n.split(" + "))) < LEAST_SEEDS
    return (UNDECIDED, "too few seeds") if few and (verdict != UNDECIDED or math.isnan(p_holm)) else (verdict, why)


def _decided(result: Comparison, margin: float, p_holm: float, tests: int) -> tuple[str, str]:
    """The same by p alone."""
    if math.isnan(p_holm):
        return UNDECIDED, "all seeds agree exactly: no spread, and so no p"
    if p_holm < ALPHA:
        return (SUPPORTED if result.effect > margin else CONTRADICTED), ""
    if result.p < ALPHA:
        return UNDECIDED, f"clear before Holm's correction over {tests} tests, not after; more seeds would tell"
    return UNDECIDED, f"the interval contains {margin:g}"
