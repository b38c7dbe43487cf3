"""One method against another at a deployment point: difference, interval and p, paired by seed, Holm's over all."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis import deployment, measure
from analysis.escape import in_latex, in_markdown
from analysis.series import Group, Series
from analysis.t_tests import ALPHA, SUPPORTED, UNDECIDED, Comparison, compare, decide, holm
from analysis.table_text import latex, latex_row, latex_table, markdown, ruled
from harness.core.bits import FLOAT, PlainPoint
from harness.core.metric import Metric

NAME = "comparisons"
COLUMNS = ("at", "method", "against", "difference", "95 % interval", "p (Holm)", "n", "test", "better")
_ALIGNMENT = "lllrrrrll"
#: What the others trained for a target are compared with, where it is there; otherwise float training.
REFERENCE = "ste"


@dataclass(frozen=True)
class Compared:
    """Two series at a point. better: the label of the better one, or nothing; reason: why there is none."""

    at: PlainPoint
    first: Series
    second: Series
    result: Comparison
    p_holm: float = math.nan
    better: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Comparisons:
    """What of a group was compared."""

    title: str
    metric: Metric
    rows: tuple[Compared, ...]

    @property
    def legend(self) -> str:
        """How to read the columns."""
        unit = measure.difference_unit(self.metric)
        count = sum(not math.isnan(one.p_holm) for one in self.rows)
        return (
            f"Difference: test {self.metric.name} of the method less that of what it is against"
            f"{f', in {unit}' if unit else ''}: mean over seeds with its 95 % t interval (unadjusted). "
            f"p: two-sided t test against 0, by Holm over all {count} tests; below {ALPHA:g} it decides."
        )


def of_group(group: Group) -> Comparisons | None:
    """What the methods of a group allow: at each target, each training against `ste` (else float training); and each
    training's further ways of deployment against its first. None where nothing is to be compared."""
    found = between(group.metric, _pairs(group))
    return Comparisons(f"{group.sweep}: {group.title}", group.metric, tuple(found)) if found else None


def between(metric: Metric, pairs: Iterable[tuple[Series, Series, PlainPoint]]) -> list[Compared]:
    """Each first series against the second at a point, p corrected over all of them."""
    drafts = []
    for first, second, point in pairs:
        one, other = (
            {seed: found[point] for seed, found in each.shown_by_seed().items() if point in found}
            for each in (first, second)
        )
        if one and other:
            drafts.append(Compared(point, first, second, compare(one, other, 0.0)))
    adjusted = holm([one.result.p for one in drafts])
    count = sum(not math.isnan(p) for p in adjusted)
    return [_judged(one, p, count, metric) for one, p in zip(drafts, adjusted, strict=True)]


def _judged(one: Compared, p_holm: float, count: int, metric: Metric) -> Compared:
    side, why = decide(one.result, 0.0, p_holm, count)
    better = one.first if (side == SUPPORTED) == metric.higher_is_better else one.second
    return replace(one, p_holm=p_holm, better="" if side == UNDECIDED else better.label, reason=why)


def _pairs(group: Group) -> Iterator[tuple[Series, Series, PlainPoint]]:
    for target in group.targets():
        able = [one for one in group.trained if one.target in (None, target) and one.scores(target)]
        if not able:
            continue
        reference = _reference(able, target)
        yield from ((one, reference, target) for one in able if one is not reference)
    points = group.targets() or [point for point in group.points() if point != FLOAT]
    for one in (one for one in group.series if not one.first):
        first = next(each for each in group.trained if each.training_label == one.training_label)
        at = points if one.target is None else [one.target]
        yield from ((one, first, point) for point in at if one.scores(point) and first.scores(point))


def _reference(able: Sequence[Series], target: PlainPoint) -> Series:
    """QAT if it is there, else float training, else the first in the sweep file."""
    wanted = [one for one in able if (one.method, one.target) == (REFERENCE, target)]
    wanted += [one for one in able if one.method == FLOAT]
    return (wanted or able)[0]


def to_frame(found: Iterable[Compared], metric: Metric) -> pd.DataFrame:
    """One row per comparison."""
    unit = measure.difference_unit(metric)
    lines = [
        {
            "at": str(one.at), "method": one.first.label, "against": one.second.label, "difference": one.result.effect,
            "low": one.result.low, "high": one.result.high, "unit": unit, "n": one.result.n, "test": one.result.test,
            "p": one.result.p, "p_holm": one.p_holm, "better": one.better, "reason": one.reason,
        }
        for one in found
    ]  # fmt: skip
    return pd.DataFrame(lines)


def cells_of(one: Compared, metric: Metric) -> list[str]:
    """The texts of a row, under `COLUMNS`; — for a number that there is not."""
    values = (one.result.effect, one.result.low, one.result.high)
    difference, low, high = ("—" if math.isnan(value) else f"{value:+.{metric.digits}f}" for value in values)
    p = "—" if math.isnan(one.p_holm) else "<0.0001" if one.p_holm < 1e-4 else f"{one.p_holm:.4f}"
    interval = "—" if low == "—" else f"[{low}, {high}]"
    last = ": ".join(filter(None, (one.better or UNDECIDED, one.reason)))
    labels = deployment.title(one.at), one.first.label, one.second.label
    return [*labels, difference, interval, p, one.result.n, one.result.test or "—", last]


def _rows(found: Comparisons) -> list[list[str]]:
    return [cells_of(one, found.metric) for one in found.rows]


def to_text(found: Comparisons) -> str:
    """Aligned plain text for a terminal; a reason is only in the files."""
    rows = [[*cells[:-1], cells[-1].partition(": ")[0]] for cells in _rows(found)]
    return "\n".join([f"{found.title} - comparisons", "", *ruled([list(COLUMNS), *rows])])


def to_markdown(found: Comparisons) -> str:
    """A GitHub table."""
    rows = [[in_markdown(text) if i in (1, 2, 8) else text for i, text in enumerate(cells)] for cells in _rows(found)]
    lines = markdown([list(COLUMNS), *rows], _ALIGNMENT)
    return "\n".join([f"**{in_markdown(found.title)}**: comparisons", "", *lines, "", found.legend, ""])


def to_latex(found: Comparisons) -> str:
    """A booktabs `tabular`; a reason is a comment beside its row."""
    lines = [latex_row(map(latex, COLUMNS)), r"\midrule"]
    for one in found.rows:
        at, first, second, *numbers, _ = cells_of(one, found.metric)
        texts = [latex(at), in_latex(first), in_latex(second), *map(latex, numbers), in_latex(one.better or UNDECIDED)]
        lines.append(latex_row(texts, one.reason))
    return latex_table(_ALIGNMENT, [f"{found.title}: comparisons", found.legend], lines)
