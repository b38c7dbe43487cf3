"""Test scores at every deployment bit-width: one panel for each target, one line for each method."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import deployment, measure, style
from analysis.figures import Drawing, Scope
from analysis.marks import Mark, marks_of
from analysis.score_axis import scale_y
from analysis.series import Group, reading_order, summarize
from harness.core.bits import FLOAT, PlainPoint
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "accuracy_over_bits", 20, Scope.GROUP
TITLE = "{Metric} over deployment bit-widths"
CAPTION = (
    "Test {metric} of the final runs after rounding to each bit-width: mean over seeds and 95% Student-t interval. An "
    "interval that reaches {limits} is cut there and has no end mark; for two seeds the bar joins their values. With "
    "ten methods or more only means are drawn. One panel for each target bit-width; float training is the same in each."
)

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
    bars, ends = len(methods) < _CROWD, measure.range_of(group.metric)
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
            handles[method] = _lines(axes, points, shift, marks[method], len(present), bars, ends)
        _dress(axes, bits, target)
    drawn = frame[frame["n"] > 0].reset_index(drop=True)
    labels = _labels(frame, methods)
    for name, score in _baseline(group).items():
        handles[name] = _across(blocks, score)
        methods, labels = [*methods, name], [*labels, name]
        drawn = pd.concat([drawn, _of_baseline(drawn, name, score)], ignore_index=True)
    shown = drawn if bars else drawn.assign(low=drawn["mean"], high=drawn["mean"])
    label, note = scale_y([axes for (axes,) in blocks], shown, group.metric)
    style.label_left(blocks, label)
    style.label_points(figure, blocks, bits)
    style.legend_above(figure, [handles[method] for method in methods], labels, group.title, frame["n"], bars, two)
    cut = "bars reach from one seed to the other" if two else _cut(group.metric)
    told = (note, cut if bars else "intervals, too many to be read, are in the table only")
    return Drawing(figure, drawn, told + (_JOINED,) * (set(map(deployment.kind, bits)) != {"weights"}))


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


def _labels(frame: pd.DataFrame, methods: list[str]) -> list[str]:
    """Method names, with n where it is not that of the others."""
    counts = {method: frame.loc[frame["method"] == method, "n"] for method in methods}
    texts = {method: style.seeds_text(count) for method, count in counts.items()}
    if len(set(texts.values())) == 1:
        return list(methods)
    return [f"{method} ({texts[method]})" for method in methods]


def _lines(
    axes: Axes, points: pd.DataFrame, shift: float, mark: Mark, count: int, bars: bool, ends: tuple[float, float]
) -> object:
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
            drawn[kind] = _line(axes, places[chosen], points[chosen], own, count, bars, ends)
    return drawn["weights"]  # float is always among them


def _line(
    axes: Axes, places: "pd.Series[float]", points: pd.DataFrame, look: dict[str, Any], count: int, bars: bool,
    ends: tuple[float, float],
) -> object:  # fmt: skip
    """Points in order; nan breaks the line at one not measured."""
    mean = points["mean"].to_numpy(float)
    spread = np.vstack([mean - points["low"].to_numpy(float), points["high"].to_numpy(float) - mean])
    container = axes.errorbar(
        places.to_numpy(), mean, yerr=spread if bars else None, **look,
        markersize=4.5 if count < _MANY else 4, linewidth=1.2 if count < _MANY else 0.9,
    )  # fmt: skip
    for caps, possible in zip(container[1], (points["low"] > ends[0], points["high"] < ends[1])):
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
