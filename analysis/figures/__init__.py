"""One figure per file: a module here that has these names is found, drawn and put into the report.

NAME     of the output files, and of `make_figures.py --figure NAME`
ORDER    its place in the report
SCOPE    what `draw` is given: a `Group`, a sequence of them, or nothing (see `Scope`)
TITLE, CAPTION   for the report: a heading, and what a reader has to know to read the picture; words that depend on what
                 is measured are {metric} and such (`analysis.measure.worded`)
draw     returns a `Drawing`, or raises `NothingToDraw`
"""

import pkgutil
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis.series import Group


class Drawing(NamedTuple):
    """A figure, the exact points in it as a tidy frame, and what a reader of the points should know.

    groups: those that it shows, where it leaves some of what it was given out.
    """

    figure: Figure
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    groups: tuple[Group, ...] | None = None


class NothingToDraw(Exception):
    """There is nothing for this figure; the message says what is lacking."""


class Scope(Enum):
    """What a figure is about."""

    THEORY = "no records: `draw()`"
    GROUP = "one model on one data set: `draw(group)`"
    ROOT = "all models and data sets of a root, or of a sweep: `draw(groups)`"
    SWEEPS = "several sweeps of a root: `draw(groups)`"


class FigureModule(NamedTuple):
    """A module of this folder."""

    name: str
    order: int
    scope: Scope
    title: str
    caption: str
    draw: Callable[..., Drawing]


def find_figures() -> list[FigureModule]:
    """Every module in this folder, in order of the report."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    found = [FigureModule(m.NAME, m.ORDER, m.SCOPE, m.TITLE, m.CAPTION, m.draw) for m in modules]
    return sorted(found, key=lambda figure: figure.order)
