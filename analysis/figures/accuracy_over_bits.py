"""Test accuracy at every deployment bit-width: one panel for each target, one line for each method."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from analysis import deployment, measure, style
from analysis.figures import Drawing, Scope
from analysis.marks import Mark, marks_of
from analysis.series import Group, reading_order, summarize
from harness.core.bits import PlainPoint
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "accuracy_over_bits", 20, Scope.GROUP
TITLE = "Accuracy over deployment bit-widths"
CAPTION = (
    "Test accuracy of the final runs after rounding to each bit-width: mean over seeds and 95% Student-t interval. An "
    "interval that reaches 0 or 100 % is cut there and has no end mark; for two seeds the bar joins their values. With "
    "ten methods or more only means are drawn. One panel for each target bit-width; float training is the same in each."
)

# Where accuracies reach this high and spread this far, a linear axis squeezes what matters into a hair.
_HIGH, _SPREAD = 90.0, 20.0
_ERROR_OFFSET = 1.0
_TICKS = (0, 25, 50, 75, 90, 95, 98, 100)
# From this many lines in a panel on, it is drawn higher and its marks smaller; from so many on, without intervals,
# which would hide them all.
_MANY, _CROWD = 6, 10
_JOINED = "lines join points that round the same: weights alone, or activations as well (hollow marks); by layer none"


def draw(group: Group) -> Drawing:
    """Mean over seeds with its 95% Student-t interval; no line crosses a bit-width that was not measured."""
    style.use_style()
    frame, two = style.spread(summarize(group))
    bits = list(map(str, group.points()))
    methods = reading_order(group, frame["method"])
    targets: list[PlainPoint | None] = [*group.targets()] or [None]
    marks = marks_of(one.name for one in group.series)
    bars = len(methods) < _CROWD
    height = 2.0 if len(methods) < _MANY else 2.6 if bars else 3.2
    figure, blocks = style.panels(len(targets), 1, height, len(methods))
    handles = {}
    for target, (axes,) in zip(targets, blocks):
        chosen = frame["target_bit"].isna() | (frame["target_bit"] == target if target else False)
        panel = frame[chosen & (frame["n"] > 0)]
        present = [method for method in methods if method in set(panel["method"])]
        for i, method in enumerate(present):
            shift = (i - (len(present) - 1) / 2) * min(0.09, 0.7 / len(present))
            points = panel[panel["method"] == method].set_index("bits").reindex(bits)
            handles[method] = _lines(axes, points, shift, marks[method], len(present), bars)
        _dress(axes, bits, target)
    drawn = frame[frame["n"] > 0].reset_index(drop=True)
    shown = drawn if bars else drawn.assign(low=drawn["mean"], high=drawn["mean"])
    label, note = _scale_y([axes for (axes,) in blocks], shown, group.metric)
    style.label_left(blocks, label)
    style.label_points(figure, blocks, bits)
    labels = _labels(frame, methods)
    style.legend_above(figure, [handles[method] for method in methods], labels, group.title, frame["n"], bars, two)
    cut = "bars reach from one seed to the other" if two else "intervals are cut at 0 and 100 %"
    told = (note, cut if bars else "intervals, too many to be read, are in the table only")
    return Drawing(figure, drawn, told + (_JOINED,) * (set(map(deployment.kind, bits)) != {"weights"}))


def _labels(frame: pd.DataFrame, methods: list[str]) -> list[str]:
    """Method names, with n where it is not that of the others."""
    counts = {method: frame.loc[frame["method"] == method, "n"] for method in methods}
    texts = {method: style.seeds_text(count) for method, count in counts.items()}
    if len(set(texts.values())) == 1:
        return list(methods)
    return [f"{method} ({texts[method]})" for method in methods]


def _lines(axes: Axes, points: pd.DataFrame, shift: float, mark: Mark, count: int, bars: bool) -> object:
    """A line through the points of weights alone, one with hollow marks through those with activations, and marks."""
    places = pd.Series(np.arange(len(points)) + shift, index=points.index)
    look = {**mark._asdict(), **style.BARS}
    looks: dict[deployment.Kind, dict[str, Any]] = {
        "weights": look, "activations": style.hollow(mark), "by layer": {**look, "linestyle": "none"},
    }  # fmt: skip
    drawn = {}
    for kind, own in looks.items():
        chosen = [deployment.kind(bits) == kind for bits in points.index]
        if any(chosen):
            drawn[kind] = _line(axes, places[chosen], points[chosen], own, count, bars)
    return drawn["weights"]  # float is always among them


def _line(
    axes: Axes, places: "pd.Series[float]", points: pd.DataFrame, look: dict[str, Any], count: int, bars: bool
) -> object:
    """Points in order; nan breaks the line at one not measured."""
    mean = points["mean"].to_numpy(float)
    spread = np.vstack([mean - points["low"].to_numpy(float), points["high"].to_numpy(float) - mean])
    container = axes.errorbar(
        places.to_numpy(), mean, yerr=spread if bars else None, **look,
        markersize=4.5 if count < _MANY else 4, linewidth=1.2 if count < _MANY else 0.9,
    )  # fmt: skip
    for caps, possible in zip(container[1], (points["low"] > 0, points["high"] < 100)):
        caps.set_ydata(np.where(possible, caps.get_ydata(), np.nan))  # an interval that is cut has no end to mark
    return container[0]  # in the legend the marker alone, without a bar over it


def _dress(axes: Axes, bits: list[str], target: PlainPoint | None) -> None:
    axes.set_xticks(range(len(bits)), list(map(deployment.short, bits)))
    axes.set_xlim(-0.5, len(bits) - 0.5)
    title = "Float training" if target is None else f"Target: {deployment.title(target)}"
    axes.set_title(title)
    if str(target) in bits:
        axes.set_title(f"{title} (shaded)")
        place = bits.index(str(target))
        axes.axvspan(place - 0.45, place + 0.45, color="0.94", zorder=0, linewidth=0)


def _scale_y(panels: list[Axes], drawn: pd.DataFrame, metric: Metric) -> tuple[str, str]:
    """Linear, or logarithmic in the error where a linear axis would hide the differences near the top."""
    means = drawn["mean"].to_numpy(float)
    low = float(np.nanmin(drawn[["mean", "low"]].to_numpy(float)))
    high = float(np.nanmax(drawn[["mean", "high"]].to_numpy(float)))
    if metric.unit != "%" or means.max() < _HIGH or means.max() - means.min() < _SPREAD:
        margin = 0.04 * (high - low) + 0.2
        most = 101.0 if metric.unit == "%" else math.inf
        panels[0].set_ylim(low - margin, min(most, high + margin))
        return measure.label(metric), "y axis: linear"
    ticks = [tick for tick in _TICKS if tick >= low - 12]
    if 0 in ticks:
        ticks.remove(25)  # its label would touch that of 0
    for axes in panels:
        axes.set_yscale("function", functions=(_from_accuracy, _to_accuracy))
        style.plain_ticks(axes.yaxis, FixedLocator(ticks))
        axes.set_ylim(max(-3.0, low - 6), 100.2)
    note = "y axis: logarithmic in the error (100 % - accuracy), so that differences near the top can be seen"
    return "Test accuracy (%)\n(log-error axis)", note


def _from_accuracy(accuracy: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 - np.asarray(accuracy, float), -0.9 * _ERROR_OFFSET) + _ERROR_OFFSET)


def _to_accuracy(position: np.ndarray) -> np.ndarray:
    return 100 + _ERROR_OFFSET - 10.0 ** -np.asarray(position, float)
