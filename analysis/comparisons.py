"""One method against another at a deployment point: difference, interval and p, paired by seed, Holm's over all."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis import by_sample, chosen, deployment, measure, t_tests
from analysis.by_sample import BySample
from analysis.escape import in_latex, in_markdown
from analysis.series import Group, Series
from analysis.t_tests import ALPHA, SUPPORTED, UNDECIDED, Comparison, compare, decide
from analysis.table_text import latex, latex_row, latex_table, markdown, ruled
from harness.core.bits import FLOAT, PlainPoint
from harness.core.metric import Metric

NAME = "comparisons"
COLUMNS = ("at", "method", "against", "difference", "95 % interval", "p (Holm)", "n", "test", "better")
_ALIGNMENT = "lllrrrrll"
#: Follows the interval over seeds where runs have kept which samples were right.
OVER_SAMPLES = "95 % over samples"
_PLACE = COLUMNS.index("p (Holm)")
#: What the others trained for a target are compared with, where it is there; otherwise float training.
REFERENCE = "ste"


@dataclass(frozen=True)
class Compared:
    """Two series at a point. better: the label of the better one, or nothing; reason: why there is none.

    by_sample: the same difference with its interval over test samples, where runs have kept which were right.
    """

    at: PlainPoint
    first: Series
    second: Series
    result: Comparison
    p_holm: float = math.nan
    better: str = ""
    reason: str = ""
    by_sample: BySample | None = None

    @property
    def doubts(self) -> str:
        """What of the tuning of its sides leaves it in doubt; nothing for two ways of deploying one training."""
        same = self.first.training_label == self.second.training_label
        return "" if same else chosen.doubted((self.first, self.second))


@dataclass(frozen=True)
class Comparisons:
    """What of a group was compared."""

    title: str
    metric: Metric
    rows: tuple[Compared, ...]
    #: Over which tests p is corrected, where not over all.
    corrected: str = ""
    #: What is compared with what, where it is not each training with the reference; and the stem of its files.
    how: str = ""
    stem: str = NAME
    #: What leaves all of it in doubt (`Group.doubt`).
    doubt: str = ""
    #: Follows the legend: where comparisons are that one may look for here.
    elsewhere: str = ""

    @property
    def legend(self) -> str:
        """How to read the columns."""
        unit = measure.difference_unit(self.metric)
        in_unit = f", in {unit}" if unit else ""
        below = "" if self.metric.higher_is_better else ", below 0 where the method is better"
        count = t_tests.count(one.result for one in self.rows)
        over = "of one test" if count == 1 else self.corrected or f"by Holm over all {count} tests"
        return (
            f"Difference: test {self.metric.name} of the method less that of what it is against"
            f"{in_unit}{below}: mean over seeds with its 95 % t interval (unadjusted). "
            f"p: two-sided t test against 0, {over}; below {ALPHA:g} it decides."
            f"{_ABOUT_SAMPLES if self.has_samples else ''}"
            f"{chosen.IN_BRACKETS if any(one.doubts for one in self.rows) else ''}{self.elsewhere}"
        )

    @property
    def has_samples(self) -> bool:
        """Whether some rows have an interval over test samples."""
        return any(one.by_sample for one in self.rows)

    @property
    def columns(self) -> list[str]:
        """The heads of the table's columns."""
        return [*COLUMNS[:_PLACE], *[OVER_SAMPLES] * self.has_samples, *COLUMNS[_PLACE:]]

    @property
    def alignment(self) -> str:
        """One letter for each column."""
        return _ALIGNMENT[:_PLACE] + "r" * self.has_samples + _ALIGNMENT[_PLACE:]


_ABOUT_SAMPLES = (
    f" {OVER_SAMPLES}: what other test samples would give these very networks, each sample compared within its seed; "
    "it says nothing about other seeds and decides nothing."
)


def of_group(group: Group) -> Comparisons | None:
    """What the methods of a group allow: at each target, each training against `ste` (else float training); and each
    training's further ways of deployment against its first. None where nothing is to be compared."""
    found = between(group.metric, _pairs(group))
    elsewhere = "".join(f" Comparisons of {name} with others: {file}." for name, file in group.compared_in.items())
    title = f"{group.sweep}: {group.title}"
    return Comparisons(title, group.metric, tuple(found), doubt=group.doubt, elsewhere=elsewhere) if found else None


def between(metric: Metric, pairs: Iterable[tuple[Series, Series, PlainPoint]]) -> list[Compared]:
    """Each first series against the second at a point, p corrected over all of them."""
    drafts = []
    for first, second, point in pairs:
        one, other = (
            {seed: found[point] for seed, found in each.shown_by_seed().items() if point in found}
            for each in (first, second)
        )
        if one and other:
            samples = by_sample.compare(first, second, point)
            drafts.append(Compared(point, first, second, compare(one, other, 0.0), by_sample=samples))
    results = [one.result for one in drafts]
    tests = t_tests.count(results)
    return [_judged(one, p, tests, metric) for one, p in zip(drafts, t_tests.adjusted(results), strict=True)]


def _judged(one: Compared, p_holm: float, tests: int, metric: Metric) -> Compared:
    side, why = decide(one.result, 0.0, p_holm, tests)
    better = one.first if (side == SUPPORTED) == metric.higher_is_better else one.second
    return replace(one, p_holm=p_holm, better="" if side == UNDECIDED else better.label, reason=why)


def _pairs(group: Group) -> Iterator[tuple[Series, Series, PlainPoint]]:
    for target in group.targets():
        able = [one for one in group.trained if one.target in (None, target) and one.scores(target)]
        if not able:
            continue
        reference = _reference(able, target)
        tested = [one for one in able if one is not reference and one.name not in group.compared_in]
        yield from ((one, reference, target) for one in tested)
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
    found = list(found)
    unit = measure.difference_unit(metric)
    lines: list[dict[str, object]] = [
        {
            "at": str(one.at), "method": one.first.label, "against": one.second.label, "difference": one.result.effect,
            "low": one.result.low, "high": one.result.high, "unit": unit, "n": one.result.n, "test": one.result.test,
            "p": one.result.p, "p_holm": one.p_holm, "better": one.better, "reason": one.reason,
        }
        for one in found
    ]  # fmt: skip
    if any(one.doubts for one in found):
        for line, one in zip(lines, found, strict=True):
            line["tuning"] = one.doubts
    if any(one.by_sample for one in found):
        for line, one in zip(lines, found, strict=True):
            over = one.by_sample
            line |= {"sample_low": over and over.low, "sample_high": over and over.high, "samples": over and over.n}
    return pd.DataFrame(lines)


def cells_of(one: Compared, metric: Metric, samples: bool = False) -> list[str]:
    """The texts of a row, under `Comparisons.columns`; — for a number that there is not. Doubts follow the verdict."""
    difference = _signed(one.result.effect, metric)
    intervals = [_interval(one.result.low, one.result.high, metric)]
    if samples:
        intervals.append(_interval(one.by_sample.low, one.by_sample.high, metric) if one.by_sample else "—")
    p = "—" if math.isnan(one.p_holm) else "<0.0001" if one.p_holm < 1e-4 else f"{one.p_holm:.4f}"
    last = ": ".join(filter(None, (one.better or UNDECIDED, one.reason))) + chosen.bracketed(one.doubts)
    labels = deployment.title(one.at), one.first.label, one.second.label
    return [*labels, difference, *intervals, p, one.result.n, one.result.test or "—", last]


def _signed(value: float, metric: Metric) -> str:
    return "—" if math.isnan(value) else f"{value:+.{metric.digits}f}"


def _interval(low: float, high: float, metric: Metric) -> str:
    return "—" if math.isnan(low) else f"[{_signed(low, metric)}, {_signed(high, metric)}]"


def _rows(found: Comparisons) -> list[list[str]]:
    return [cells_of(one, found.metric, found.has_samples) for one in found.rows]


def to_text(found: Comparisons) -> str:
    """Aligned plain text for a terminal, with reasons in a few words."""
    short = replace(found, rows=tuple(replace(one, reason=_short(one.reason)) for one in found.rows))
    return "\n".join([f"{found.title} - comparisons", "", *ruled([found.columns, *_rows(short)])])


def _short(reason: str) -> str:
    """Its first words: `clear before Holm's correction`."""
    return reason.partition(" over ")[0].partition(": ")[0]


def to_markdown(found: Comparisons) -> str:
    """A GitHub table."""
    texts = (1, 2, len(found.columns) - 1)
    rows = [[in_markdown(text) if i in texts else text for i, text in enumerate(cells)] for cells in _rows(found)]
    lines = markdown([found.columns, *rows], found.alignment)
    return "\n".join([f"**{in_markdown(found.title)}**: comparisons", "", *lines, "", found.legend, ""])


def to_latex(found: Comparisons) -> str:
    """A booktabs `tabular`; a reason is a comment beside its row."""
    lines = [latex_row(map(latex, found.columns)), r"\midrule"]
    for one in found.rows:
        at, first, second, *numbers, _ = cells_of(one, found.metric, found.has_samples)
        texts = [latex(at), in_latex(first), in_latex(second), *map(latex, numbers), in_latex(one.better or UNDECIDED)]
        lines.append(latex_row(texts, (one.reason + chosen.bracketed(one.doubts)).strip()))
    return latex_table(found.alignment, [f"{found.title}: comparisons", found.legend], lines)
