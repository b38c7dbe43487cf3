"""One figure a file: a module here with a `NAME` and a `draw(group) -> Drawing` is found and drawn."""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis.series import Group


class Drawing(NamedTuple):
    """A figure, the exact points in it as a tidy frame, and what a reader of the points should know."""

    figure: Figure
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


class NothingToDraw(Exception):
    """The group holds nothing for this figure; the message says what is lacking."""


def find_figures() -> dict[str, Callable[[Group], Drawing]]:
    """Name of the output files -> `draw`, for every module in this folder."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return {module.NAME: module.draw for module in modules}
