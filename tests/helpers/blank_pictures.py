"""Figures whose files are empty, for tests of what is said beside them: most of a report's time goes into pictures."""

import pytest
from matplotlib.figure import Figure

from analysis.output import Output


def blank_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let figures be made, and written as files without content."""

    def figure(made: Output, stem: str, figure: Figure, subject: str) -> None:
        for suffix in (".pdf", ".png"):
            made.text(stem + suffix, "")

    patch.setattr(Output, "figure", figure)
