"""Two trainings compared seed by seed: what the claims compare, t tests of the difference, Holm's correction."""

import math
import statistics  # the standard library's: this module's neighbour of that name is analysis.statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis.series import Group, Series
from analysis.statistics import LEVEL
from analysis.sweep import Final
from harness.core.bits import FLOAT
from harness.records.schema import FREQUENCY

QAT, REGULARIZER = "ste", "oscillation"
WORDS = {QAT: "QAT", REGULARIZER: "regularizer"}
#: "Far more" is read as more than twice as often: the least that the words allow, since less would contradict them.
#: The ratio itself always stands beside the verdict.
FAR_MORE = 2.0
#: A test decides where its adjusted p is below this; the level of the 95 % interval.
ALPHA = round(1 - LEVEL, 9)
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
PAIRED, WELCH = "paired t", "Welch t"

#: Decimals kept of every value. A difference of 1 point may be 1e-14 off in binary: seeds that agree would seem to have
#: a spread, and a mean on the margin to lie beside it. No accuracy or frequency is known to 1e-10.
_DECIMALS = 10


class Lacking(Exception):
    """A comparison cannot be made; the message says what the sweep lacks."""


class Sides(NamedTuple):
    """Values by seed whose difference is the effect (in points or 1/step), and what to know of them."""

    first: dict[int, float]
    second: dict[int, float]
    remark: str = ""


def frequency_sides(group: Group, method: str, bits: int) -> Sides:
    """Mean over epochs of the oscillation frequency (1/step) against `FAR_MORE` times that of float training.

    Frequencies at different bit-widths cannot be compared: float training must have been watched at `bits`.
    """
    moved = _trained(group, method, bits)
    floats = [one for one in group.series if one.first and one.method == FLOAT]
    watched = sorted({watched for one in floats for watched in one.watched})
    if bits not in moved.watched:
        raise Lacking(f"{moved.training_label} is watched at {' and '.join(map(str, moved.watched))} bits")
    if floats and bits not in watched:
        raise Lacking(f"float training is watched at {' and '.join(map(str, watched))} bits")
    still = _only([one for one in floats if bits in one.watched], "float training", group)
    (often, lost), (rarely, lost_too) = frequencies(moved, bits), frequencies(still, bits)
    mean, rare = statistics.mean(often.values()), statistics.mean(rarely.values())
    ratio = f"{mean / rare:.3g} times float training's" if rare else "float training never oscillates"
    remark = "; ".join(filter(None, (ratio, lost, lost_too)))
    return Sides(often, {seed: FAR_MORE * value for seed, value in rarely.items()}, remark)


def target_sides(group: Group, method: str, bits: int) -> Sides:
    """Accuracy (points) at the target of the one method against the other's with the same target."""
    one, rival = _rivals(group, method, bits)
    return Sides(_at(one, bits), _at(rival, bits))


def float_sides(group: Group, method: str, bits: int) -> Sides:
    """The lowest accuracy (points) at the bit-widths above the target against the same run's float accuracy.

    The lowest of several noisy values is biased downwards, against the claim.
    """
    one = _trained(group, method, bits)
    own = _at(one, FLOAT)
    above = [b for b in _shared_bits(one) if b > bits]
    if not above:
        raise Lacking(f"{one.training_label} was not tested above {bits} bits")
    found = accuracies(one)
    return Sides({seed: min(found[seed][b] for b in above) for seed in own}, own, _listed(above))


def other_sides(group: Group, method: str, bits: int) -> Sides:
    """Mean accuracy (points) over the integer bit-widths but the target, of one method against the other."""
    one, rival = _rivals(group, method, bits)
    others = [b for b in _shared_bits(one, rival) if b != bits]
    if not others:
        raise Lacking(f"{one.training_label} and {rival.training_label} were not both tested at a bit-width but {bits}")
    first, second = (
        {seed: statistics.mean(found[b] for b in others) for seed, found in accuracies(side).items()}
        for side in (one, rival)
    )
    return Sides(first, second, _listed(others))


def _listed(bits: Sequence[int]) -> str:
    return f"at {', '.join(map(str, bits))} bits"


def _rivals(group: Group, method: str, bits: int) -> tuple[Series, Series]:
    """The series of `method` and that of the other one; first ways of deployment that differ are not compared."""
    rival = REGULARIZER if method == QAT else QAT
    one, other = _trained(group, method, bits), _trained(group, rival, bits)
    if (one.deploy, one.scale) != (other.deploy, other.scale):
        raise Lacking(f"{one.training_label} is deployed by {one.deploy}, {other.training_label} by {other.deploy}")
    return one, other


def _trained(group: Group, method: str, target: int) -> Series:
    found = [one for one in group.series if one.first and (one.method, one.target) == (method, target)]
    return _only(found, f"{WORDS[method]} for {target} bits", group)


def _only(found: Sequence[Series], what: str, group: Group) -> Series:
    """The one series; of several, a claim about a method cannot say which."""
    if not found:
        raise Lacking(f"no {'finished ' if group.missing else ''}{what} in this sweep")
    if len(found) > 1:
        raise Lacking(f"several series are {what}: {', '.join(one.training_label for one in found)}")
    return found[0]


def accuracies(one: Series) -> dict[int, dict[int | str, float]]:
    """Seed -> bit-width -> test accuracy in points."""
    return {
        final.seed: {
            row["bits"]: 100 * row["accuracy"]
            for row in final.record["rows"]
            if (row["split"], row["deploy"], row["scale"]) == ("test", one.deploy, one.scale)
        }
        for final in one.finals
    }


def _at(one: Series, bits: int | str) -> dict[int, float]:
    """Seed -> test accuracy in points, of the seeds tested at `bits`."""
    values = {seed: found[bits] for seed, found in accuracies(one).items() if bits in found}
    if not values:
        raise Lacking(f"{one.training_label} was not tested at {bits}{'' if bits == FLOAT else ' bits'}")
    return values


def _shared_bits(*series: Series) -> list[int]:
    """The integer bit-widths at which every run of the series was tested: means over others would not compare."""
    found = [set(bits) for one in series for bits in accuracies(one).values()]
    return sorted(b for b in set.intersection(*found) if isinstance(b, int))


def frequencies(one: Series, bits: int) -> tuple[dict[int, float], str]:
    """Seed -> mean over its epochs of the frequency in 1/step, and how many runs report none."""
    values = {final.seed: _mean_of(final, one.metric(FREQUENCY, bits)) for final in one.finals}
    found = {seed: value for seed, value in values.items() if not math.isnan(value)}
    lost = f"{len(values) - len(found)} of {len(values)} runs of {one.training_label} report no {FREQUENCY}"
    if not found:
        raise Lacking(lost)
    return found, "" if len(found) == len(values) else lost


def _mean_of(final: Final, name: str) -> float:
    values = [entry.get(name) for entry in final.epochs()[0].values()]
    known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return statistics.mean(known) if known else math.nan


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

    Without spread there is neither: t has no value, and a p of 0 would claim a certainty that no few seeds give.
    """
    if error == 0:
        return Comparison(test, n, effect)
    from scipy.stats import t

    half_width = float(t.ppf(0.5 + LEVEL / 2, degrees)) * error
    p = 2 * float(t.sf(abs(effect - margin) / error, degrees))
    return Comparison(test, n, effect, effect - half_width, effect + half_width, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given; nan, a test that was not made, stays nan and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        # Never below that of a smaller p, so that nothing is rejected after the first that is not.
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def decide(result: Comparison, margin: float, p_holm: float, tests: int) -> tuple[str, str]:
    """The verdict on "the effect is above the margin" and why, if there is something to say; of `tests` in all."""
    if math.isnan(p_holm) and not result.test:
        return UNDECIDED, "too few seeds"
    side = SUPPORTED if result.effect > margin else CONTRADICTED
    if math.isnan(p_holm):
        return (UNDECIDED if result.effect == margin else side), "all seeds agree exactly: no spread, and so no p"
    if p_holm < ALPHA:
        return side, ""
    if result.p < ALPHA:
        return UNDECIDED, f"clear before Holm's correction over {tests} tests, not after; more seeds would tell"
    return UNDECIDED, f"the interval contains {margin:g}"
