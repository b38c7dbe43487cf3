"""One look for all figures: paper widths, fonts legible in print, marks told apart without colour."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.schema import FLOAT

#: Inches; the column widths common to two-column venues.
SINGLE_COLUMN, DOUBLE_COLUMN = 3.25, 6.75
PANEL_COLUMNS = 4

# Seaborn's colour-blind palette, light tones late. Its grey is left out (float training is dark grey); its
# yellow and pink, too faint for a line on white, are darkened; a dark purple makes ten.
_COLOURS: list[Any] = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 4, 3, 5, 9)]
_COLOURS += ["#b3a800", "#49006a", "#c2185b"]
_MARKERS = "os^DvPX<>p"
_DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2))]
_DASHES += [(0, (2.5, 1.2)), (0, (4, 1, 1, 1, 1, 1)), (0, (8, 1.5, 2, 1.5))]


class Mark(NamedTuple):
    """How a method is drawn, the same in every panel and figure."""

    color: Any
    marker: str
    linestyle: Any


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


def marks(methods: Iterable[str]) -> dict[str, Mark]:
    """A mark for each method, in order of the sweep file. Ten differ in colour and marker."""
    result = {}
    for method in dict.fromkeys(methods):
        if method == FLOAT:
            result[method] = Mark("0.25", "h", (0, (1, 1)))
            continue
        i = sum(other != FLOAT for other in result)
        result[method] = Mark(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
    return result


def panel_columns(count: int) -> int:
    """How many of `count` panels stand side by side: 5 as 3 and 2, not as 4 and 1."""
    return -(-count // -(-count // PANEL_COLUMNS))


def panels(count: int, rows_each: int, height: float, legend_entries: int) -> tuple[Figure, list[list[Axes]]]:
    """`count` small multiples side by side, each of `rows_each` axes from top to bottom.

    A row of axes shares its y axis; more than `PANEL_COLUMNS` panels wrap.
    """
    columns = panel_columns(count)
    wraps = -(-count // columns)
    width = SINGLE_COLUMN if columns == 1 else DOUBLE_COLUMN
    legend_height = 0.32 + 0.16 * -(-legend_entries // 4)
    figure, grid = plt.subplots(
        wraps * rows_each, columns, squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03),
        figsize=(width, wraps * rows_each * height + legend_height), sharex=True,
    )  # fmt: skip
    blocks = []
    for i in range(wraps * columns):
        rows = range(i // columns * rows_each, (i // columns + 1) * rows_each)
        axes = [grid[row][i % columns] for row in rows]
        if i < count:
            blocks.append(axes)
        else:
            for unused in axes:
                unused.set_visible(False)
    for row in range(rows_each):
        for axes in blocks[1:]:
            axes[row].sharey(blocks[0][row])
    for i, axes in enumerate(blocks):
        for axis in axes:
            axis.tick_params(labelleft=i % columns == 0, labelbottom=axis is axes[-1])
    return figure, blocks


def legend_above(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str, counts: Iterable[int]
) -> None:
    """A legend over all panels that reads from left to right, line after line."""
    inches_each = 0.062 * max(len(label) for label in labels) + 0.55
    columns = max(1, min(int(figure.get_figwidth() / inches_each), len(labels), 6))
    columns = -(-len(labels) // -(-len(labels) // columns))  # as few as the same number of lines takes
    # Matplotlib fills column by column; reading goes line by line.
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]
    seeds = seeds_text(counts)
    spread = "one seed, no interval" if seeds == "n = 1" else f"mean and 95% t interval over seeds ({seeds})"
    legend = figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], title=f"{title}\n{spread}", ncols=columns,
        loc="outside upper center", frameon=False, handlelength=3.2, columnspacing=1.4, borderaxespad=0.1,
    )  # fmt: skip
    legend.get_title().set_multialignment("center")


def seeds_text(counts: Iterable[int]) -> str:
    """`n = 3`, or `n = 2 to 3` where not every point has as many seeds."""
    found = sorted({count for count in counts if count})
    if not found:
        return "n = 0"
    return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"
