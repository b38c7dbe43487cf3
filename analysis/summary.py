"""What the comparisons of a group come to, in a sentence or two for each bit-width."""

from collections.abc import Sequence
from statistics import fmean

from analysis import deployment, measure
from analysis.comparisons import Compared, Comparisons
from analysis.series import Series
from harness.core.bits import FLOAT, PlainPoint


def sentences(found: Comparisons) -> list[str]:
    """One text for each point that trainings were compared at: the best trained one there, and what it gains over the
    reference; then which others are better and worse than that.

    Better and worse are what the tests decide, after Holm's correction over all of them. No text
    for a comparison of ways of deployment of one training.
    """
    at: dict[PlainPoint, list[Compared]] = {}
    for one in found.rows:
        if one.first.training_label != one.second.training_label:
            at.setdefault(one.at, []).append(one)
    return [_sentence(found, rows) for rows in at.values()]


def _sentence(found: Comparisons, rows: Sequence[Compared]) -> str:
    """The best trained one and what it gains over what all rows are against, then the others against that.

    Where rows are against several, of the one that all of them are of.
    """
    point, sign = rows[0].at, 1 if found.metric.higher_is_better else -1
    if len({one.second.label for one in rows}) > 1:
        subject = rows[0].first
        told = _against(found, subject, [(one.second, -one.result.effect, one) for one in rows], sign)
        return f"At {deployment.title(point)} {_having(found, subject, point)}; {told}."
    reference = rows[0].second
    trained = [one for one in rows if one.first.method != FLOAT]
    best = max(trained, key=lambda one: sign * one.result.effect, default=None)
    others = [(one.first, one.result.effect, one) for one in rows if one is not best]
    if best is None or (reference.method != FLOAT and sign * best.result.effect <= 0):
        told = _against(found, reference, [(one.first, one.result.effect, one) for one in rows], sign)
        return f"At {deployment.title(point)} {_having(found, reference, point)}; {told}."
    text = f"At {deployment.title(point)} {_having(found, best.first, point)}, {_gain(found, best)}."
    return f"{text} Others against {reference.label}: {_against(found, reference, others, sign)}." if others else text


def _gain(found: Comparisons, one: Compared) -> str:
    """`better than float (+5.0)`, `against ste@2 not decided by 3 seeds (+0.1)`."""
    gained = f"{one.second.label}{_in_brackets(one.second, _signed(found, one.result.effect))}"
    if not one.better:
        return f"against {gained} {_undecided([one])}"
    return f"{'better' if one.better == one.first.label else 'worse'} than {gained}"


def _against(found: Comparisons, subject: Series, others: Sequence[tuple[Series, float, Compared]], sign: int) -> str:
    """Which others are better and worse than the subject, the best first. others: with their difference from it."""
    ordered = sorted(others, key=lambda item: -sign * item[1])
    open_ones = [one for _, _, one in others if not one.better]
    groups = {
        "better": [(other, effect) for other, effect, one in ordered if one.better == other.label],
        "worse": [(other, effect) for other, effect, one in ordered if one.better == subject.label],
        _undecided(open_ones): [(other, effect) for other, effect, one in ordered if not one.better],
    }
    parts = [
        f"{name}: {', '.join(other.label + _in_brackets(other, _signed(found, effect)) for other, effect in each)}"
        for name, each in groups.items()
        if each
    ]
    return "; ".join(parts)


def _undecided(rows: Sequence[Compared]) -> str:
    seeds = " or ".join(sorted({one.result.n for one in rows}))
    return f"not decided by {seeds} seed{'s' * (seeds != '1')}"


def _signed(found: Comparisons, effect: float) -> str:
    return f"{effect:+.{measure.decimals(found.metric)}f}"


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
