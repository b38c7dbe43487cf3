"""The cross-bit table: accuracy of every method and target at every deployment bit-width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.series import Group, summarize
from analysis.statistics import Interval, separate_best
from harness.core.bits import FLOAT

NAME = "cross_bit_table"
_LEGEND = "the target bit-width is {target}, a best whose interval is separate from the second best's {best}"

_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One number of the table."""

    interval: Interval
    best: bool
    target: bool

    def text(self, plus_minus: str = "±", unknown: str = "—") -> str:
        """`97.1 ± 0.8`; one seed has no interval and prints `97.1 ±—`."""
        if not self.interval.n:
            return unknown
        if math.isnan(self.interval.half_width):
            return f"{self.interval.mean:.1f} {plus_minus}{unknown}"
        return f"{self.interval.mean:.1f} {plus_minus} {self.interval.half_width:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows of entries in the order of the sweep, with the numbers they were made from."""

    title: str
    bits: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Entry, ...]], ...]
    frame: pd.DataFrame

    def legend(self, target: str, best: str) -> str:
        """How to read the marks, which a target and a best have, and what is not to be known from a label."""
        aimed = any(label.startswith("none@") for label, _, _ in self.rows)
        control = "; none@b is float training whose best epoch (and knob) is chosen at b bits" if aimed else ""
        return _LEGEND.format(target=target, best=best) + control


def make_table(group: Group) -> Table:
    """The table of a group; rows by target, then in the order of the sweep file."""
    frame = summarize(group)
    bits = tuple(group.bits())
    order = sorted(group.series, key=lambda one: (one.target is None, one.target or 0))
    keys = zip(frame["series"], frame["bits"])
    intervals = dict(zip(keys, map(Interval, frame["mean"], frame["half_width"], frame["n"])))
    best = {}
    for column in bits:
        place = separate_best([intervals[one.label, column] for one in order])
        best[column] = None if place is None else order[place].label
    rows = tuple(
        (
            one.label,
            _seeds([intervals[one.label, b].n for b in bits], len(one.cell.seeds)),
            tuple(Entry(intervals[one.label, b], best[b] == one.label, b == str(one.target)) for b in bits),
        )
        for one in order
    )
    return Table(f"{group.sweep}: {group.title}", bits, rows, frame)


def _seeds(counts: Sequence[int], planned: int) -> str:
    """`3`, or `2/3` while seeds are missing, or `1-2/3` where bit-widths differ in theirs."""
    found = sorted({count for count in counts if count})
    text = str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"
    return text if found == [planned] else f"{text}/{planned}"


def header(bits: str) -> str:
    return bits if bits == FLOAT else f"{bits} bits"


def to_text(table: Table) -> str:
    """Aligned plain text for a terminal."""
    lines = [["", "seeds", *(header(b) for b in table.bits)]]
    for label, seeds, entries in table.rows:
        lines.append([label, seeds, *(_marked(entry, "[{}]", "{}*") for entry in entries)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    rule = "-" * len(aligned[0])
    title = f"{table.title} - test accuracy (%), mean ± half-width of the 95% t interval over seeds"
    return "\n".join([title, "", aligned[0], rule, *aligned[1:], rule, table.legend("in [ ]", "has a *")])


def _marked(entry: Entry, target: str, best: str) -> str:
    text = best.format(entry.text()) if entry.best else entry.text() + " " * (len(best) - 2)
    return target.format(text) if entry.target else f" {text} "


def to_markdown(table: Table) -> str:
    """A GitHub table."""
    lines = [
        f"**{table.title}**: test accuracy (%), mean ± half-width of the 95% t interval over seeds", "",
        "| | seeds | " + " | ".join(header(b) for b in table.bits) + " |",
        "|:--|--:|" + "--:|" * len(table.bits),
    ]  # fmt: skip
    for label, seeds, entries in table.rows:
        texts = []
        for entry in entries:
            text = f"<u>{entry.text()}</u>" if entry.target else entry.text()
            texts.append(f"**{text}**" if entry.best else text)
        lines.append(f"| {label.replace('|', chr(92) + '|')} | {seeds} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", _sentence(table.legend("underlined", "bold")), ""])


def to_latex(table: Table) -> str:
    """A booktabs `tabular`, to be put unchanged into a paper that loads booktabs."""
    lines = [
        f"% {table.title}: test accuracy (%), mean and half-width of the 95% t interval over seeds",
        "% " + table.legend("underlined", "bold"),
        rf"\begin{{tabular}}{{lr{'r' * len(table.bits)}}}",
        r"\toprule",
        " & ".join(["Method", "Seeds", *(header(b) for b in table.bits)]) + r" \\",
        r"\midrule",
    ]
    for label, seeds, entries in table.rows:
        texts = []
        for entry in entries:
            text = entry.text(r"$\pm$", "---")
            text = rf"\underline{{{text}}}" if entry.target else text
            texts.append(rf"\textbf{{{text}}}" if entry.best else text)
        lines.append(" & ".join([escape_latex(label), seeds.replace("-", "--"), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def escape_latex(text: str) -> str:
    """Text with TeX's special characters made harmless."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)
