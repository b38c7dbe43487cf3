"""The score below, at and above the target against oscillation frequency, of every final run: do they go together?"""

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from analysis import deployment, measure, style
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.marks import marks_of
from analysis.paired import Lacking, frequencies
from analysis.partial_ranks import partial_rank
from analysis.series import Group, Series, reading_order
from harness.core.bits import FLOAT

NAME, ORDER, SCOPE = "oscillation_and_score", 45, Scope.GROUP
TITLE = "Oscillation and {metric}"
CAPTION = (
    "Test {metric} at the target bit-width and mean over those below and above it, against oscillation frequency (mean "
    "over epochs, codes of each method's own quantizer), one mark for each final run. Hollow at the left edge: runs "
    "that never oscillate. r: Spearman's correlation with learning rate and {metric} in float held fixed, with its "
    "95 % interval from a bootstrap over cells. A correlation is no cause: methods differ in more than oscillation."
)

SIDES = ("below", "at", "above")
#: Fewer trainings say nothing about a correlation with two others held fixed.
_LEAST_CELLS = 8
#: Up to this ratio of the ends of the axis, these multiples of powers of ten are labelled.
_TICKS = {30: (1, 2, 5), 100: (1, 3)}
_HELD = ("learning_rate", "float")


def draw(group: Group) -> Drawing:
    """A column of panels for each target; float training, which has none, is in those that it was watched at."""
    style.use_style()
    frame = _points(group)
    targets = list(dict.fromkeys(frame["target_bit"]))
    sides = [side for side in SIDES if side in set(frame["side"])]
    names = reading_order(group, frame["method"])
    marks = marks_of([one.name for one in group.trained] + names)
    figure, blocks = style.panels(len(targets), len(sides), 1.5, len(names), shared=False)
    for target, block in zip(targets, blocks):
        for side, axes in zip(sides, block):
            panel = frame[(frame["target_bit"] == target) & (frame["side"] == side)]
            if panel.empty:
                axes.set_visible(False)
                continue
            for name in names:
                own = panel[panel["method"] == name]
                for drawn, still in ((own[own["frequency"] > 0], False), (own[own["frequency"] == 0], True)):
                    _scatter(axes, drawn, marks[name], panel, still)
            _scale_x(axes)
            axes.set_title(f"{side} the target of {deployment.title(target)}\n{_text(panel)}")
    for row in range(len(sides)):
        left = next(block[row] for block in blocks if block[row].get_visible())
        left.set_ylabel(measure.axis_label(group.metric))
    figure.supxlabel("Oscillation frequency (1/step)", fontsize=8)
    handles = [
        Line2D([], [], linestyle="", marker=marks[name].marker, color=marks[name].color, markeredgecolor="white")
        for name in names
    ]
    style.legend_of(figure, handles, names, f"{group.title}: final runs")
    return Drawing(figure, frame)


def _points(group: Group) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for target in group.targets():
        if isinstance(target, int):
            for one in group.trained:
                if one.target in (None, target):
                    lines += _runs(one, target)
    frame = pd.DataFrame(lines)
    if frame.empty:
        raise NothingToDraw("no run for a bit-width of weights has its oscillations counted there")
    parts = []
    for _, panel in frame.groupby(["target_bit", "side"], sort=False):
        if panel["cell"].nunique() < _LEAST_CELLS:
            continue
        found = partial_rank(panel, "frequency", "score", _HELD, "cell")
        parts.append(panel.assign(rho=found.rho, rho_low=found.low, rho_high=found.high, cells=found.clusters))
    if not parts:
        raise NothingToDraw(
            f"no target has {_LEAST_CELLS} trainings, the least for a correlation with two others fixed"
        )
    return pd.concat(parts, ignore_index=True)


def _runs(one: Series, target: int) -> list[dict[str, Any]]:
    """Its runs at the bit-widths of weights below, at and above a target; none where they were not watched there."""
    if target not in one.watched:
        return []
    try:
        found, _ = frequencies(one, target)
    except Lacking:
        return []
    lines = []
    for final in one.finals:
        scores = one.shown_by_seed()[final.seed]
        widths = [bits for bits in scores if isinstance(bits, int)]
        wanted = {
            "below": [b for b in widths if b < target],
            "at": [target],
            "above": [b for b in widths if b > target],
        }
        rate = final.config["train"].get("learning_rate")
        if final.seed not in found or rate is None or FLOAT not in scores or target not in scores:
            continue
        of_run = {
            "target_bit": target, "method": one.name, "cell": one.cell.id, "seed": final.seed,
            "frequency": found[final.seed], "learning_rate": rate, "float": scores[FLOAT],
        }  # fmt: skip
        for side, bits in wanted.items():
            if bits:
                lines.append({"side": side, **of_run, "score": statistics.mean(scores[b] for b in bits)})
    return lines


def _scale_x(axes: Axes) -> None:
    """Logarithmic, with as many plain numbers as have room."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    places = next((subs for ratio, subs in _TICKS.items() if high / low < ratio), (1,))
    # Within a factor of four these are one or two, and matplotlib's own choice has no room.
    style.plain_ticks(axes.xaxis, MaxNLocator(4) if high / low < 4 else LogLocator(subs=places))


def _text(panel: pd.DataFrame) -> str:
    """`r = -0.31 [-0.62, 0.05]`."""
    rho, low, high = panel.iloc[0][["rho", "rho_low", "rho_high"]]
    return "r unknown" if math.isnan(rho) else f"r = {rho:z.2f} [{low:z.2f}, {high:z.2f}]"


def _scatter(axes: Axes, points: pd.DataFrame, mark: Any, panel: pd.DataFrame, still: bool) -> None:
    """still: runs whose frequency is 0, which a logarithmic axis does not have."""
    positive = panel.loc[panel["frequency"] > 0, "frequency"]
    edge = positive.min() / 3 if len(positive) else 1e-6
    at = np.full(len(points), edge) if still else points["frequency"]
    face = "none" if still else mark.color
    axes.plot(
        at, points["score"], linestyle="", marker=mark.marker, color=mark.color, markersize=4, markerfacecolor=face,
        markeredgecolor=mark.color if still else "white", markeredgewidth=0.5,
    )  # fmt: skip
