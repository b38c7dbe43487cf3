"""What the comparisons of a group come to, in a sentence or two for each bit-width."""

from collections.abc import Sequence
from statistics import fmean

from analysis import deployment, measure
from analysis.comparisons import Compared, Comparisons
from analysis.series import Series
from harness.core.bits import PlainPoint


def sentences(found: Comparisons) -> list[str]:
    """One text for each point that trainings were compared at: who is better and worse than the reference there.

    Better and worse are what the tests decide, after Holm's correction over all of them; the best come first. No text
    for a comparison of ways of deployment of one training.
    """
    at: dict[PlainPoint, list[Compared]] = {}
    for one in found.rows:
        if one.first.training_label != one.second.training_label:
            at.setdefault(one.at, []).append(one)
    return [_sentence(found, rows) for rows in at.values()]


def _sentence(found: Comparisons, rows: Sequence[Compared]) -> str:
    point, reference = rows[0].at, rows[0].second
    sign = 1 if found.metric.higher_is_better else -1
    rows = sorted(rows, key=lambda one: -sign * one.result.effect)
    undecided = [one for one in rows if not one.better]
    seeds = " or ".join(sorted({one.result.n for one in undecided}))
    groups = {
        "better": [one for one in rows if one.better == one.first.label],
        "worse": [one for one in rows if one.better == reference.label],
        f"not decided by {seeds} seeds": undecided,
    }
    parts = [f"{name}: {', '.join(_named(one, found) for one in each)}" for name, each in groups.items() if each]
    return f"At {deployment.title(point)} {reference.label} has {_score(found, reference, point)}; {'; '.join(parts)}."


def _named(one: Compared, found: Comparisons) -> str:
    return f"{one.first.label} ({one.result.effect:+.{measure.decimals(found.metric)}f})"


def _score(found: Comparisons, series: Series, point: PlainPoint) -> str:
    """The mean over seeds, with its unit."""
    mean = fmean(scores[point] for scores in series.shown_by_seed().values() if point in scores)
    return f"{mean:.{measure.decimals(found.metric)}f} {found.metric.unit}".rstrip()
