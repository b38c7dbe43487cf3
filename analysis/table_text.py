"""Tables as plain text, as Markdown and as LaTeX. A table is its rows of texts, the header first."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from analysis.escape import in_latex, in_latex_comment

Rows = Sequence[Sequence[str]]


class Marks(NamedTuple):
    """How an entry is marked as the best one, and as the one at the target bit-width."""

    best: str
    target: str


MARKDOWN = Marks("**{}**", "<u>{}</u>")
LATEX = Marks(r"\textbf{{{}}}", r"\underline{{{}}}")


def aligned(rows: Rows, left: int = 0) -> list[str]:
    """A line for each row: the columns padded to one width, to the right of column `left` only."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(text.ljust(w) if i == left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths)))
        for row in rows
    ]


def ruled(rows: Rows, left: int = 0) -> list[str]:
    """The aligned lines with rules below the header and below the last row."""
    header, *lines = aligned(rows, left)
    rule = "-" * len(header)
    return [header, rule, *lines, rule]


def markdown(rows: Rows, columns: str) -> list[str]:
    """The lines of a GitHub table. columns: `l` or `r` for each, as in LaTeX."""
    escaped = [[text.replace("|", r"\|") for text in row] for row in rows]
    header, *lines = ["|" + "".join(f" {text} |" if text else " |" for text in row) for row in escaped]
    return [header, "|" + "".join(":--|" if column == "l" else "--:|" for column in columns), *lines]


def latex_table(columns: str, comments: Iterable[str], lines: Iterable[str]) -> str:
    """A booktabs `tabular` of lines that `latex_row` and `latex_title` made, to be put unchanged into a paper."""
    start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*(f"% {in_latex_comment(comment)}" for comment in comments), *start, *lines, *end])


def latex_row(texts: Iterable[str], comment: str = "") -> str:
    """A row of texts that are LaTeX already."""
    return " & ".join(texts) + r" \\" + (f" % {in_latex_comment(comment)}" if comment else "")


def latex_title(text: str, width: int) -> str:
    """A row of one text, LaTeX already, across `width` columns."""
    return rf"\multicolumn{{{width}}}{{l}}{{{text}}} \\"


def latex(text: str) -> str:
    """Text of the analysis as LaTeX: a hyphen before a number is a minus sign, and <, ± and — become commands."""
    text = re.sub(r"(?<![A-Za-z0-9])-(?=\d)", "$-$", in_latex(text))
    return text.replace("—", "---").replace(r"\textless{}", "$<$").replace("±", r"$\pm$")
