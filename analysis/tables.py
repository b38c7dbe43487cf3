"""The cross-bit table: the score of every method and target at every deployment bit-width."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import deployment, measure
from analysis.escape import in_latex, in_markdown
from analysis.intervals import Interval, separate_best
from analysis.series import Group, summarize
from analysis.table_text import LATEX, MARKDOWN, Marks, latex, latex_row, latex_table, markdown, ruled
from harness.core.bits import PlainPoint
from harness.core.metric import Metric

NAME = "cross_bit_table"
_SPREAD = "mean ± half-width of the 95% t interval over seeds"
_LEGEND = "the target bit-width is {target}, a best whose interval is separate from the second best's {best}"


@dataclass(frozen=True)
class Entry:
    """One number of the table."""

    interval: Interval
    best: bool
    target: bool
    #: Of the numbers in its text.
    decimals: int = 1

    def text(self) -> str:
        return interval_text(self.interval, self.decimals)


@dataclass(frozen=True)
class Table:
    """Rows of entries in the order of the sweep, with the numbers they were made from."""

    title: str
    points: tuple[PlainPoint, ...]
    rows: tuple[tuple[str, str, tuple[Entry, ...]], ...]
    frame: pd.DataFrame
    metric: Metric

    @property
    def label(self) -> str:
        """What the numbers are: `Test accuracy (%)`."""
        return measure.label(self.metric)

    @property
    def heading(self) -> str:
        """Of the table in a report."""
        return f"{measure.capital(self.metric.name)} at every deployment bit-width"

    @property
    def what(self) -> str:
        """The same within a sentence, and what is beside each number."""
        told = [f"{self.label[0].lower()}{self.label[1:]}", _SPREAD, measure.direction(self.metric)]
        return ", ".join(filter(None, told))

    def legend(self, target: str, best: str) -> str:
        """How to read the marks, which a target and a best have, and what is not to be known from a label."""
        aimed = [label for label, _, _ in self.rows if label.startswith("none@")]
        bits = "b" if any(label.startswith("none@w") for label in aimed) else "b bits"
        control = f"; none@b is float training whose best epoch (and setting) is chosen at {bits}" if aimed else ""
        two = of_two_seeds(entry.interval for _, _, entries in self.rows for entry in entries).rstrip(".")
        return _LEGEND.format(target=target, best=best) + control + (two and f".{two}")


def make_table(group: Group) -> Table:
    """The table of a group; rows by target, then in the order of the sweep file."""
    frame = summarize(group)
    columns, places = tuple(group.points()), measure.decimals(group.metric)
    targets = group.targets()
    order = sorted(group.series, key=lambda one: len(targets) if one.target is None else targets.index(one.target))
    keys = zip(frame["series"], frame["bits"])
    intervals = dict(zip(keys, map(Interval, frame["mean"], frame["half_width"], frame["n"])))
    best = {}
    for point in columns:
        place = separate_best([intervals[one.label, str(point)] for one in order], group.metric.higher_is_better)
        best[point] = None if place is None else order[place].label
    rows = tuple(
        (
            one.label,
            _seeds([intervals[one.label, str(point)].n for point in columns], len(one.cell.seeds)),
            tuple(Entry(intervals[one.label, str(p)], best[p] == one.label, p == one.target, places) for p in columns),
        )
        for one in order
    )
    title = f"{group.sweep}: {group.title}"
    return Table(title, columns, (*rows, *_baseline(group, columns)), frame, group.metric)


def _baseline(group: Group, points: Sequence[PlainPoint]) -> list[tuple[str, str, tuple[Entry, ...]]]:
    """A row of what needs no training, where the task has that: it is the same in each run."""
    found = measure.baseline_scores(group.finals[0].record)
    if not found:
        return []
    (name, scores), places = found, measure.decimals(group.metric)
    intervals = [Interval(scores[p], 0.0, 1) if p in scores else Interval(math.nan, math.nan, 0) for p in points]
    return [(name, "—", tuple(Entry(interval, False, False, places) for interval in intervals))]


def _seeds(counts: Sequence[int], planned: int) -> str:
    """`3`, or `2/3` while seeds are missing, or `1-2/3` where bit-widths differ in theirs."""
    found = sorted({count for count in counts if count})
    text = str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"
    return text if found == [planned] else f"{text}/{planned}"


def interval_text(interval: Interval, decimals: int = 1) -> str:
    """`97.1 ± 0.8`; `61.3 (41.0, 81.5)` of two seeds, whose t interval says little; `97.1 ±—` of one.

    What does not depend on a seed prints `97.1`.
    """
    if not interval.n:
        return "—"
    if interval.n == 1 and interval.half_width == 0:
        return f"{interval.mean:.{decimals}f}"
    if math.isnan(interval.half_width):
        return f"{interval.mean:.{decimals}f} ±—"
    if interval.n == 2:
        return f"{interval.mean:.{decimals}f} ({', '.join(f'{one:.{decimals}f}' for one in interval.pair())})"
    return f"{interval.mean:.{decimals}f} ± {interval.half_width:.{decimals}f}"


def of_two_seeds(intervals: Iterable[Interval]) -> str:
    """What a legend says of intervals of two seeds, where there are some: a sentence."""
    return " Of two seeds: the mean and both values." if any(each.n == 2 for each in intervals) else ""


def to_text(table: Table) -> str:
    """Aligned plain text for a terminal."""
    rows = [[label, seeds, *map(_bracketed, entries)] for label, seeds, entries in table.rows]
    title = f"{table.title} - {table.what}"
    return "\n".join([title, "", *ruled([_header(table), *rows]), table.legend("in [ ]", "has a *")])


def _bracketed(entry: Entry) -> str:
    text = entry.text() + ("*" if entry.best else " ")
    return f"[{text}]" if entry.target else f" {text} "


def to_markdown(table: Table) -> str:
    """A GitHub table."""
    rows = [[in_markdown(label), seeds, *(_marked(entry, entry.text(), MARKDOWN) for entry in entries)]
            for label, seeds, entries in table.rows]  # fmt: skip
    legend, title = table.legend("underlined", "bold"), in_markdown(table.title)
    lines = markdown([list(map(in_markdown, _header(table))), *rows], _columns(table))
    return "\n".join([f"**{title}**: {table.what}", "", *lines, "", f"{legend[0].upper()}{legend[1:]}.", ""])


def to_latex(table: Table) -> str:
    """A booktabs `tabular`."""
    lines = [latex_row(map(in_latex, _header(table, "Method", "Seeds"))), r"\midrule"]
    for label, seeds, entries in table.rows:
        texts = [_marked(entry, latex(entry.text()), LATEX) for entry in entries]
        lines.append(latex_row([in_latex(label), seeds.replace("-", "--"), *texts]))
    what = f"{table.title}: {table.what.replace(' ±', ' and')}"
    return latex_table(_columns(table), [what, table.legend("underlined", "bold")], lines)


def _header(table: Table, method: str = "", seeds: str = "seeds") -> list[str]:
    return [method, seeds, *map(deployment.title, table.points)]


def _columns(table: Table) -> str:
    return "lr" + "r" * len(table.points)


def _marked(entry: Entry, text: str, marks: Marks) -> str:
    text = marks.target.format(text) if entry.target else text
    return marks.best.format(text) if entry.best else text
