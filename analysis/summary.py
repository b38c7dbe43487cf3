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
    """Of the training that all rows are against; where there are several, of the one that all of them are of."""
    turned = len({one.second.label for one in rows}) > 1
    point, subject = rows[0].at, rows[0].first if turned else rows[0].second
    sign = 1 if found.metric.higher_is_better else -1
    others = [(one.second, -one.result.effect, one) if turned else (one.first, one.result.effect, one) for one in rows]
    others.sort(key=lambda item: -sign * item[1])
    seeds = " or ".join(sorted({one.result.n for one in rows if not one.better}))
    groups = {
        "better": [(other, effect) for other, effect, one in others if one.better == other.label],
        "worse": [(other, effect) for other, effect, one in others if one.better == subject.label],
        f"not decided by {seeds} seed{'s' * (seeds != '1')}": [
            (other, effect) for other, effect, one in others if not one.better
        ],
    }
    places = measure.decimals(found.metric)
    parts = [
        f"{name}: {', '.join(other.label + _in_brackets(other, f'{effect:+.{places}f}') for other, effect in each)}"
        for name, each in groups.items()
        if each
    ]
    return f"At {deployment.title(point)} {_having(found, subject, point)}; {'; '.join(parts)}."


def _having(found: Comparisons, series: Series, point: PlainPoint) -> str:
    """`ste@2 has 55.0 %`, and in brackets what of its tuning leaves verdicts in doubt."""
    return f"{series.label} has {_score(found, series, point)}{_in_brackets(series)}"


def _in_brackets(series: Series, *before: str) -> str:
    """What of its tuning leaves verdicts in doubt, after what else there is to say; empty for nothing."""
    told = ", ".join((*before, *series.doubts))
    return f" ({told})" if told else ""


def _score(found: Comparisons, series: Series, point: PlainPoint) -> str:
    """The mean over seeds, with its unit."""
    mean = fmean(scores[point] for scores in series.shown_by_seed().values() if point in scores)
    return f"{mean:.{measure.decimals(found.metric)}f} {found.metric.unit}".rstrip()
