"""One look for all figures: the venue's widths, fonts legible in print, marks told apart without colour."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerTuple
from matplotlib.ticker import FuncFormatter, Locator, NullLocator
from tueplots import figsizes

from analysis import deployment
from analysis.escape import in_figure
from analysis.marks import Mark
from harness.core.errors import unknown

#: Inches; narrower panels have no room for four bit-widths and a label.
_NARROWEST_PANEL = 1.55
#: Entries of a legend that need a page's width, in two columns.
_LONG_LEGEND = 16
#: Characters of a line of the title of the narrowest panel.
_TITLE_OF_PANEL = 18
#: Points: the mean width of a character in a figure's title.
_TITLE_CHARACTER = 4.4
#: Of the label at the left of a panel, and of a character of a tick's label with its share of a gap.
_Y_LABEL, _CHARACTER = 0.35, 0.08
#: Of a character of the label below a figure, and of a line of it.
_X_CHARACTER, _LINE = 0.065, 0.13
#: Of a line of the legend, and how many entries `panels` expects in one; so many lines more have room as it is.
_LEGEND_LINE, _ENTRIES_A_LINE, _LINES_TO_SPARE = 0.16, 4, 4
DEFAULT_VENUE = "tmlr2023"

#: Of a point with its interval.
BARS: dict[str, Any] = {"markeredgecolor": "white", "elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8}


class Venue(NamedTuple):
    """Widths in inches: of a figure beside text, and of one across the page."""

    name: str
    column: float
    page: float


_venue = Venue(DEFAULT_VENUE, 3.25, 6.5)
_titles = True


def venues() -> list[str]:
    """The names that `use_venue` takes: tueplots' venues."""
    names = (name for name in dir(figsizes) if not name.startswith("_") and not name.startswith("beamer"))
    return sorted({name.removesuffix("_full").removesuffix("_half") for name in names})


def use_venue(name: str) -> None:
    """Draw all following figures at a venue's widths. Raises UserError for one that tueplots does not know."""
    global _venue
    if name not in venues():
        raise unknown("venue", name, venues())

    def width(function: str) -> float:
        return float(getattr(figsizes, function)()["figure.figsize"][0])

    if hasattr(figsizes, f"{name}_full"):
        _venue = Venue(name, width(f"{name}_half"), width(f"{name}_full"))
    else:  # one column of text: two figures side by side
        _venue = Venue(name, width(name) / 2, width(name))


def venue() -> Venue:
    """The venue that figures are drawn for."""
    return _venue


def use_titles(wanted: bool) -> None:
    """Whether the following figures say over their legend what they are about; panels keep their titles."""
    global _titles
    _titles = wanted


def panel_title(text: str) -> str:
    """A panel's title, its lines broken where words, settings and parts of a stack end."""
    lines = [""]
    for part in re.findall(r"[^ =+]+[=+]?| ", text):
        lines[-1:] = [lines[-1] + part] if len(lines[-1] + part) <= _TITLE_OF_PANEL else [lines[-1], part]
    return in_figure("\n".join(filter(None, map(str.strip, lines))))


def title_of(text: str, figure: Figure) -> str | None:
    """A figure's title, lines broken that are wider than the figure; None where none is wanted."""
    longest = int(figure.get_figwidth() * 72 / _TITLE_CHARACTER)
    return "\n".join(textwrap.fill(line, longest) for line in text.split("\n")) if _titles else None


def use_style() -> None:
    """Set matplotlib up; called before every figure so that none depends on another."""
    sns.set_theme(context="paper", style="ticks")
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same file on every machine
            "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7.5,
            "legend.title_fontsize": 7.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
            "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
            "xtick.major.size": 2.5, "ytick.major.size": 2.5,
            "axes.grid": True, "axes.grid.axis": "y", "grid.linewidth": 0.4, "grid.color": "0.88",
            "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
            "lines.linewidth": 1.2, "lines.markersize": 4, "lines.markeredgewidth": 0.4,
            "pdf.fonttype": 42, "svg.hashsalt": "harness", "savefig.dpi": 200, "figure.dpi": 200,
        }
    )  # fmt: skip


def panel_columns(number: int, narrowest: float = 0) -> int:
    """How many of `number` panels are side by side: 5 as 3 and 2, not as 4 and 1. narrowest: inches that each needs."""
    most = max(1, int(_venue.page / max(narrowest, _NARROWEST_PANEL)))
    return -(-number // -(-number // most))


def panels(
    number: int, rows_each: int, height: float, legend_entries: int, shared: bool = True, narrowest: float = 0
) -> tuple[Figure, list[list[Axes]]]:
    """`number` small multiples side by side, each of `rows_each` axes from top to bottom.

    shared: all axes share x, and a row of axes its y axis; more panels than fit a page's width wrap. narrowest: inches.
    """
    columns = panel_columns(number, narrowest)
    wraps = -(-number // columns)
    fits = columns == 1 and narrowest <= _venue.column and legend_entries <= _LONG_LEGEND
    width = _venue.column if fits else _venue.page
    legend_height = 0.32 + _LEGEND_LINE * -(-legend_entries // _ENTRIES_A_LINE)
    figure, grid = plt.subplots(
        wraps * rows_each, columns, squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03),
        figsize=(width, wraps * rows_each * height + legend_height), sharex=shared,
    )  # fmt: skip
    places = [divmod(i, columns) for i in range(wraps * columns)]
    blocks = [list(grid[row * rows_each : (row + 1) * rows_each, column]) for row, column in places]
    for unused in (axes for block in blocks[number:] for axes in block):
        unused.set_visible(False)
    del blocks[number:]
    for row in range(rows_each if shared else 0):
        for axes in blocks[1:]:
            axes[row].sharey(blocks[0][row])
    for i, axes in enumerate(blocks if shared else ()):
        for axis in axes:
            axis.tick_params(labelleft=i % columns == 0, labelbottom=axis is axes[-1])
    return figure, blocks


def label_left(blocks: Sequence[Sequence[Axes]], *labels: str) -> None:
    """Label the y axes of the panels at the left, one label for each of a panel's axes."""
    for block in blocks[:: _side_by_side(blocks)]:
        for axes, label in zip(block, labels):
            axes.set_ylabel(label)


def _side_by_side(blocks: Sequence[Sequence[Axes]]) -> int:
    """How many panels the first row has."""
    return sum(block[0].get_position().y0 == blocks[0][0].get_position().y0 for block in blocks)


def hollow(mark: Mark) -> dict[str, Any]:
    """The look of a mark at a point with activations: with a white face, in the line of such points alone."""
    return {**mark._asdict(), **BARS, "markerfacecolor": "white", "markeredgecolor": mark.color, "markeredgewidth": 0.8}


def label_points(
    figure: Figure, blocks: Sequence[Sequence[Axes]], points: Sequence[str], further: Sequence[str] = ()
) -> None:
    """Say below the figure what the ticks of its panels are, deployment points; turned where they would touch.

    further: what other ticks there are.
    """
    kinds = set(map(deployment.kind, points))
    if kinds == {"weights"}:
        figure.supxlabel("Deployment bit-width", fontsize=8)
        return
    parts = [text.replace(" ", "\N{NO-BREAK SPACE}") for kind, text in deployment.EXPLAINED.items() if kind in kinds]
    lines = textwrap.wrap(f"Deployment point ({'; '.join(parts)})", int(figure.get_figwidth() / _X_CHARACTER))
    figure.supxlabel("\n".join(lines), fontsize=8)
    height = _LINE * (len(lines) - 1)
    columns = _side_by_side(blocks)
    ticks = [*map(deployment.short, points), *further]
    longest = max(map(len, ticks))
    if len(ticks) * longest * _CHARACTER > figure.get_figwidth() / columns - _Y_LABEL:
        for axes, *_ in blocks:
            axes.tick_params(axis="x", rotation=90)
        height += (longest * _X_CHARACTER - _LINE) * -(-len(blocks) // columns)
    figure.set_figheight(figure.get_figheight() + height)


def plain_ticks(axis: Axis, places: Locator) -> None:
    """Ticks at these places only, labelled by plain numbers on any scale."""
    axis.set_major_locator(places)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def spread(points: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Points whose `low` and `high` are what is drawn about the mean, and whether these are two seeds.

    Columns n, low, high, lowest, highest: of two seeds, whose t interval is nine times as wide as they lie apart, the
    seeds themselves.
    """
    two = bool(points["n"].max() == 2)
    return (points.assign(low=points["lowest"], high=points["highest"]) if two else points), two


def legend_above(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    title: str,
    counts: Iterable[int],
    bars: bool = True,
    two: bool = False,
) -> None:
    """A legend over all panels that says what the lines are: means over so many seeds, with `bars` or without.

    two: bars are from the one seed to the other.
    """
    seeds = seeds_text(counts)
    drawn = ("mean and range" if two else "mean and 95% t interval") if bars else "mean"
    what = "one seed, no interval" if seeds == "n = 1" else f"{drawn} over seeds ({seeds})"
    legend_of(figure, handles, labels, f"{title}\n{what}")


def legend_of(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str) -> None:
    """A legend over all panels that reads from left to right, line after line."""
    inches_each = 0.062 * max(len(label) for label in labels) + 0.55
    columns = max(1, min(int(figure.get_figwidth() / inches_each), len(labels), 6))
    lines = -(-len(labels) // columns)
    columns = -(-len(labels) // lines)  # as few as the same number of lines takes
    further = lines - -(-len(labels) // _ENTRIES_A_LINE)
    if further > _LINES_TO_SPARE:  # else the panels would shrink to strips
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * further)
    # Matplotlib fills column by column; reading goes line by line.
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]
    legend = figure.legend(
        [handles[i] for i in order], [in_figure(labels[i]) for i in order], ncols=columns,
        title=title_of(in_figure(title), figure),
        loc="outside upper center", frameon=False, handlelength=3.2, columnspacing=1.4, borderaxespad=0.1,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},  # several marks for one entry, side by side
    )  # fmt: skip
    legend.get_title().set_multialignment("center")


def seeds_text(counts: Iterable[int]) -> str:
    """`n = 3`, or `n = 2 to 3` where not every point has as many seeds."""
    found = sorted({count for count in counts if count})
    if not found:
        return "n = 0"
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"
