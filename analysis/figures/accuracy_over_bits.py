"""Test scores at every deployment bit-width: a line for each method, or for each way to deploy a training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import deployment, measure, style
from analysis.figures import Drawing, Scope
from analysis.marks import Mark
from analysis.score_axis import scale_y
from analysis.score_panels import CROWD, MOST_PANELS, Panel, Panels, arrange
from analysis.series import Group, summarize
from harness.core.bits import FLOAT
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "accuracy_over_bits", 20, Scope.GROUP
TITLE = "{Metric} over deployment bit-widths"
CAPTION = (
    "Test {metric} of the final runs after rounding to each bit-width: mean over seeds and 95% Student-t interval. An "
    "interval that reaches {limits} is cut there and has no end mark; for two seeds the bar joins their values. With "
    "ten methods (or ways of deployment) or more only means are drawn. One panel for each target bit-width, with a "
    "line for each method; float training is the same in each. Where such a panel would hold ten lines or more, of "
    f"trainings deployed in several ways: one panel for each of at most {MOST_PANELS} trainings, with a line for each "
    "way."
)

# From this many lines in a panel on, it is drawn higher and its marks smaller. From `CROWD` on, it is without
# intervals, which would hide them all.
_MANY = 6
#: Inches: of a panel with few lines, with many, and with a crowd; the same of panels of trainings in several rows.
_HEIGHTS, _HEIGHTS_IN_ROWS = (2.0, 2.6, 3.2), (1.75, 2.0, 2.0)
#: From one line to the next, and of all lines of a panel, as shares of the distance between two bit-widths: where lines
#: are methods, and where they are ways, in smaller panels.
_STEP, _STEP_OF_WAYS = (0.09, 0.7), (0.15, 0.75)
#: Inches from one way's interval to the next, unless that takes more rows of panels than a page has room for.
_CLOSEST, _MOST_ROWS = 0.04, 4
#: Of a line and its marks, points: many of them, and few; one that is emphasized, and the others beside it.
_SMALL, _LARGE = {"markersize": 4, "linewidth": 0.9}, {"markersize": 4.5, "linewidth": 1.2}
_STRONG: dict[str, Any] = {"markersize": 6, "linewidth": 2.2, "linestyle": "-", "zorder": 4}
_FAINT = {"alpha": 0.45}
_JOINED = "lines join points that round the same: weights alone, or activations as well (hollow marks); by layer none"


def draw(group: Group) -> Drawing:
    """Mean over seeds with its 95% Student-t interval; no line crosses a bit-width that was not measured."""
    style.use_style()
    frame, two = style.spread(summarize(group))
    bits, baseline = list(map(str, group.points())), _baseline(group)
    shown = arrange(group, frame, len(baseline))
    bars = len(shown.lines) < CROWD
    height, narrowest = _size(shown, len(bits), bars)
    figure, blocks = style.panels(len(shown.panels), 1, height, len(shown.lines), narrowest=narrowest)
    handles = _draw_panels(shown, blocks, bits, bars, group)
    drawn = frame[frame["n"] > 0].reset_index(drop=True)
    lines, labels = list(shown.lines), _labels(shown)
    for name, score in baseline.items():
        handles[name] = _across(blocks, score)
        lines, labels = [*lines, name], [*labels, name]
        drawn = pd.concat([drawn, _of_baseline(drawn, name, score)], ignore_index=True)
    scaled = drawn if bars else drawn.assign(low=drawn["mean"], high=drawn["mean"])
    label, note = scale_y([axes for (axes,) in blocks], scaled, group.metric)
    style.label_left(blocks, label)
    style.label_points(figure, blocks, bits)
    style.legend_above(figure, [handles[line] for line in lines], labels, _title(group, shown), frame["n"], bars, two)
    cut = "bars reach from one seed to the other" if two else _cut(group.metric)
    told = (note, cut if bars else "intervals, too many to be read, are in the table only")
    return Drawing(figure, drawn, told + (_JOINED,) * (set(map(deployment.kind, bits)) != {"weights"}))


def _title(group: Group, shown: Panels) -> str:
    """What the figure is about; panels of targets say themselves what is shaded."""
    if not shown.each:
        return group.title
    shaded = any(target in group.points() for target in group.targets())
    return f"{group.title}: by training" + ", target shaded" * shaded


def _size(shown: Panels, points: int, bars: bool) -> tuple[float, float]:
    """Height and least width of a panel, in inches."""
    count, narrowest = len(shown.panels), 0.0
    if shown.each and bars:
        wanted = points * len(shown.lines) * _CLOSEST / _STEP_OF_WAYS[1]
        narrowest = wanted if style.panel_columns(count, wanted) * _MOST_ROWS >= count else 0.0
    in_rows = shown.each and style.panel_columns(count, narrowest) < count
    few, many, crowd = _HEIGHTS_IN_ROWS if in_rows else _HEIGHTS
    return (few if len(shown.lines) < _MANY else many if bars else crowd), narrowest


def _draw_panels(
    shown: Panels, blocks: Sequence[Sequence[Axes]], bits: list[str], bars: bool, group: Group
) -> dict[str, object]:
    """Draws each panel's lines; returns one handle of each for the legend."""
    handles, ends = {}, measure.range_of(group.metric)
    for panel, (axes,) in zip(shown.panels, blocks):
        present = [line for line in shown.lines if line in set(panel.points["line"])]
        most, room = _STEP_OF_WAYS if shown.each else _STEP
        step, small = min(most, room / max(1, len(present))), shown.each or len(present) >= _MANY
        for i, line in enumerate(present):
            shift = (i - (len(present) - 1) / 2) * step
            points = panel.points[panel.points["line"] == line].set_index("bits").reindex(bits)
            weight = _SMALL if small else _LARGE
            if group.emphasized:
                weight = _STRONG if line in group.emphasized else {**weight, **_FAINT}
            handles[line] = _lines(axes, points, shift, shown.marks[line], weight, bars, ends)
        _dress(axes, bits, panel)
    return handles


def _cut(metric: Metric) -> str:
    """What became of intervals that reach past what is possible."""
    return f"intervals are cut at {measure.limits(metric).replace(' or ', ' and ')}"


def _baseline(group: Group) -> dict[str, float]:
    """What does the task without training, as a line: its name and score."""
    found = measure.baseline_scores(group.finals[0].record)
    return {found[0]: found[1][FLOAT]} if found and FLOAT in found[1] else {}


def _across(blocks: Sequence[Sequence[Axes]], score: float) -> object:
    """A line through all panels."""
    look: dict[str, Any] = {"color": "0.45", "linewidth": 0.9, "linestyle": (0, (3, 1.5)), "zorder": 1}
    drawn = [axes.axhline(score, **look) for (axes,) in blocks]
    return drawn[0]


def _of_baseline(drawn: pd.DataFrame, name: str, score: float) -> pd.DataFrame:
    """Its line of the frame."""
    values = {"series": name, "method": name, "bits": FLOAT, "n": 1, "n_planned": 1, "mean": score}
    values |= {"lowest": score, "highest": score}
    return pd.DataFrame([values]).reindex(columns=drawn.columns).astype(drawn.dtypes.to_dict())


def _labels(shown: Panels) -> list[str]:
    """Names of lines, with n where it is not that of the others."""
    texts = {line: style.seeds_text(shown.counts[line]) for line in shown.lines}
    if len(set(texts.values())) == 1:
        return list(shown.lines)
    return [f"{line} ({texts[line]})" for line in shown.lines]


def _lines(
    axes: Axes, points: pd.DataFrame, shift: float, mark: Mark, weight: dict[str, Any], bars: bool,
    ends: tuple[float, float],
) -> object:  # fmt: skip
    """A line through the points of weights alone, one with hollow marks through those with activations, and marks."""
    places = pd.Series(np.arange(len(points)) + shift, index=points.index)
    look = {**mark._asdict(), **style.BARS, **weight}
    looks: dict[deployment.Kind, dict[str, Any]] = {
        "weights": look, "activations": {**style.hollow(mark), **weight}, "by layer": {**look, "linestyle": "none"},
    }  # fmt: skip
    drawn = {}
    for kind, own in looks.items():
        chosen = [deployment.kind(bits) == kind for bits in points.index]
        if any(chosen):
            drawn[kind] = _line(axes, places[chosen], points[chosen], own, bars, ends)
    return drawn["weights"]  # float is always among them


def _line(
    axes: Axes, places: "pd.Series[float]", points: pd.DataFrame, look: dict[str, Any], bars: bool,
    ends: tuple[float, float],
) -> object:  # fmt: skip
    """Points in order; nan breaks the line at one not measured."""
    mean = points["mean"].to_numpy(float)
    spread = np.vstack([mean - points["low"].to_numpy(float), points["high"].to_numpy(float) - mean])
    container = axes.errorbar(places.to_numpy(), mean, yerr=spread if bars else None, **look)
    for caps, possible in zip(container[1], (points["low"] > ends[0], points["high"] < ends[1])):
        caps.set_ydata(np.where(possible, caps.get_ydata(), np.nan))  # an interval that is cut has no end to mark
    return container[0]  # in the legend the marker alone, without a bar over it


def _dress(axes: Axes, bits: list[str], panel: Panel) -> None:
    axes.set_xticks(range(len(bits)), list(map(deployment.short, bits)))
    axes.set_xlim(-0.5, len(bits) - 0.5)
    axes.set_title(panel.title)
    if str(panel.target) in bits:
        place = bits.index(str(panel.target))
        axes.axvspan(place - 0.45, place + 0.45, color="0.94", zorder=0, linewidth=0)
