"""What the claims compare, seed by seed: the values of one training and of another."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from analysis.results import Final
from analysis.series import Group, Series
from harness.core.bits import FLOAT, PlainPoint
from harness.records.schema import FREQUENCY

QAT, REGULARIZER = "ste", "oscillation"
WORDS = {QAT: "QAT", REGULARIZER: "regularizer"}
#: "Far more" is read as more than twice as often: the least that the words allow, since less would contradict them.
#: The ratio itself is always given with the verdict.
FAR_MORE = 2.0


class Lacking(Exception):
    """A comparison cannot be made; the message says what the sweep lacks."""


class Sides(NamedTuple):
    """Values by seed whose difference is the effect (in 1/step, or the metric's unit), and what to know of them."""

    first: dict[int, float]
    second: dict[int, float]
    remark: str = ""
    #: Whose values they are.
    trained: tuple[Series, ...] = ()


def frequency_sides(group: Group, method: str, bits: int) -> Sides:
    """Mean over epochs of the oscillation frequency (1/step) against `FAR_MORE` times that of float training.

    Frequencies at different bit-widths cannot be compared: float training must have been watched at `bits`.
    """
    moved = _trained(group, method, bits)
    floats = [one for one in group.trained if one.method == FLOAT]
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
    return Sides(often, {seed: FAR_MORE * value for seed, value in rarely.items()}, remark, (moved, still))


def target_sides(group: Group, method: str, bits: int) -> Sides:
    """The score at the target of the one method against the other's with the same target."""
    one, rival = _rivals(group, method, bits)
    return _better(group, _at(one, bits), _at(rival, bits), (one, rival))


def float_sides(group: Group, method: str, bits: int) -> Sides:
    """The worst score at the bit-widths above the target against the same run's score in float.

    The worst of several noisy values is biased against the claim.
    """
    one = _trained(group, method, bits)
    own = _at(one, FLOAT)
    above = [b for b in _shared_bits(one) if b > bits]
    if not above:
        raise Lacking(f"{one.training_label} was not tested above {bits} bits")
    found = one.shown_by_seed()
    worst = {seed: group.metric.worst(found[seed][b] for b in above) for seed in own}
    return _better(group, worst, own, (one,), _listed(above))


def other_sides(group: Group, method: str, bits: int) -> Sides:
    """Mean score over the integer bit-widths but the target, of one method against the other."""
    one, rival = _rivals(group, method, bits)
    others = [b for b in _shared_bits(one, rival) if b != bits]
    if not others:
        raise Lacking(f"{one.training_label} and {rival.training_label} were not both tested at a bit-width but {bits}")
    first, second = (
        {seed: statistics.mean(found[b] for b in others) for seed, found in side.shown_by_seed().items()}
        for side in (one, rival)
    )
    return _better(group, first, second, (one, rival), _listed(others))


def _better(
    group: Group, one: dict[int, float], other: dict[int, float], trained: tuple[Series, ...], remark: str = ""
) -> Sides:
    """Sides whose difference is positive where `one` is better."""
    sides = (one, other) if group.metric.higher_is_better else (other, one)
    return Sides(*sides, remark, trained)


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
    found = [one for one in group.trained if (one.method, one.target) == (method, target)]
    return _only(found, f"{WORDS[method]} for {target} bits", group)


def _only(found: Sequence[Series], what: str, group: Group) -> Series:
    """The one series; of several, a claim about a method cannot say which."""
    if not found:
        raise Lacking(f"no {'finished ' if group.missing else ''}{what} in this sweep")
    if len(found) > 1:
        raise Lacking(f"several series are {what}: {', '.join(one.training_label for one in found)}")
    return found[0]


def _at(one: Series, bits: PlainPoint) -> dict[int, float]:
    """Seed -> test score as it is shown, of the seeds tested at `bits`."""
    values = {seed: found[bits] for seed, found in one.shown_by_seed().items() if bits in found}
    if not values:
        raise Lacking(f"{one.training_label} was not tested at {bits}{'' if bits == FLOAT else ' bits'}")
    return values


def _shared_bits(*series: Series) -> list[int]:
    """The bit-widths of weights alone at which every run was tested: means over others would not compare."""
    found = [set(bits) for one in series for bits in one.shown_by_seed().values()]
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
