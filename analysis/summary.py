"""What the comparisons of a group come to, in a sentence or two for each bit-width."""

from collections.abc import Sequence
from statistics import fmean

from analysis import deployment, measure
from analysis.comparisons import Compared, Comparisons
from analysis.series import Series
from harness.core.bits import FLOAT, PlainPoint


def sentences(found: Comparisons) -> list[str]:
    """One text for each point that trainings were compared at: the best trained one there, and what it gains over the
    reference; then which others are better and worse than that. Where each is compared with several, one text for each
    of them. Differences have the sign that they have in the table.

    Better and worse are what the tests decide, after Holm's correction over all of them. No text
    for a comparison of ways of deployment of one training.
    """
    at: dict[PlainPoint, list[Compared]] = {}
    for one in found.rows:
        if one.first.training_label != one.second.training_label:
            at.setdefault(one.at, []).append(one)
    texts = [text for rows in at.values() for text in _at_one_point(found, rows)]
    return [measure.sentence(found.doubt), *texts] if texts and found.doubt else texts


def _at_one_point(found: Comparisons, rows: Sequence[Compared]) -> list[str]:
    if len({one.second.label for one in rows}) == 1:
        return [_against_one(found, rows)]
    own: dict[str, list[Compared]] = {}
    for one in rows:
        own.setdefault(one.first.label, []).append(one)
    return [_against_several(found, each) for each in own.values()]


def _against_several(found: Comparisons, rows: Sequence[Compared]) -> str:
    """What the one that all rows are of is behind and ahead of, first what it is furthest behind."""
    ordered = sorted(rows, key=lambda one: _sign(found) * one.result.effect)
    told = _grouped(found, [(one.second, one) for one in ordered], "behind", "ahead of")
    return f"At {deployment.title(rows[0].at)} {_having(found, rows[0].first, rows[0].at)}; {told}."


def _against_one(found: Comparisons, rows: Sequence[Compared]) -> str:
    """The best trained one and what it gains over what all rows are against, then the others against that."""
    point, sign, reference = rows[0].at, _sign(found), rows[0].second
    trained = [one for one in rows if one.first.method != FLOAT]
    best = max(trained, key=lambda one: sign * one.result.effect, default=None)
    if best is None or (reference.method != FLOAT and sign * best.result.effect <= 0):
        text = f"At {deployment.title(point)} {_having(found, reference, point)}; {_others(found, rows)}."
        return text + _ahead_of_all(found, rows, 0.0)
    text = f"At {deployment.title(point)} {_having(found, best.first, point)}, {_gain(found, best)}."
    if others := [one for one in rows if one is not best]:
        text += f" Others against {reference.label}: {_others(found, others)}."
    return text + _ahead_of_all(found, rows, best.result.effect)


def _ahead_of_all(found: Comparisons, rows: Sequence[Compared], effect: float) -> str:
    """What is to be said where another mean is better than that of the one that leads, as float training's may be.

    effect: of the one that leads, against what all rows are against.
    """
    sign = _sign(found)
    best = max(rows, key=lambda one: sign * one.result.effect)
    if sign * best.result.effect <= max(
        sign * effect, 0
    ):  # 0: the sentence has said that what all are against is better
        return ""
    return f" The best mean is that of {best.first.label}, {_score(found, best.first, best.at)}."


def _others(found: Comparisons, rows: Sequence[Compared]) -> str:
    """Which are better and worse than what all rows are against, the best first."""
    ordered = sorted(rows, key=lambda one: -_sign(found) * one.result.effect)
    return _grouped(found, [(one.first, one) for one in ordered], "better", "worse")


def _sign(found: Comparisons) -> int:
    return 1 if found.metric.higher_is_better else -1


def _gain(found: Comparisons, one: Compared) -> str:
    """`better than float (+5.0)`, `against ste@2 not decided by 3 seeds (+0.1)`."""
    gained = f"{one.second.label}{_in_brackets(one.second, _signed(found, one.result.effect))}"
    if not one.better:
        return f"against {gained} {_undecided([one])}"
    return f"{'better' if one.better == one.first.label else 'worse'} than {gained}"


def _grouped(found: Comparisons, named: Sequence[tuple[Series, Compared]], better: str, worse: str) -> str:
    """The side that is named of each row, with the difference: those that are better, worse, and not decided."""
    left = _undecided([one for _, one in named if not one.better])
    groups: dict[str, list[str]] = {better: [], worse: [], left: []}
    for side, one in named:
        group = left if not one.better else better if one.better == side.label else worse
        groups[group].append(f"{side.label}{_in_brackets(side, _signed(found, one.result.effect))}")
    return "; ".join(f"{group}: {', '.join(each)}" for group, each in groups.items() if each)


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
