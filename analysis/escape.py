"""Text that users write (labels, names of sweeps, layers, methods, settings) as text, whatever characters are in it.

One function for each kind of file. In HTML the template's environment does it (analysis/report.py, autoescape).
"""

import re

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
}  # fmt: skip
_MARKDOWN = re.compile(r"[\\`*$~\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def in_figure(text: str) -> str:
    """For matplotlib: a `$` begins no mathematics."""
    return text.replace("$", r"\$")


def in_latex(text: str) -> str:
    """TeX's special characters made harmless, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def in_latex_comment(text: str) -> str:
    """On one line, which alone a comment covers."""
    return " ".join(text.split())


def in_markdown(text: str) -> str:
    """GitHub's Markdown, on one line: no marks, code, links, mathematics or HTML. `|` is left to the table."""
    marked = _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], marked)
