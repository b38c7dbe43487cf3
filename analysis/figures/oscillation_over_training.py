"""How often weights oscillate while training: a column for each watched bit-width, a line for each method."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import style, watched
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.intervals import t_interval
from analysis.marks import Mark, marks_of
from analysis.series import Group, reading_order
from harness.records.schema import FREQUENCY, OSCILLATING_FRACTION

NAME, ORDER, SCOPE = "oscillation_over_training", 40, Scope.GROUP
TITLE = "Oscillation over training"
CAPTION = (
    "How often a weight's code turns back: the mean frequency, and the share of weights above 0.02 a step, mean over "
    "seeds and the range from the lowest seed to the highest. A column for each bit-width whose codes were watched."
)

_METRICS = {
    FREQUENCY: "Frequency\n(1/step)",
    OSCILLATING_FRACTION: "Oscillating\nweights",
}
# Beyond this ratio of the largest to the smallest mean a linear axis shows the largest line alone.
_LINEAR_RATIO = 20.0


def draw(group: Group) -> Drawing:
    """Mean and range over seeds, as far as all of a series have trained.

    Not the t interval (it is in the points): at three seeds it often includes 0, which no logarithmic axis can show.
    """
    style.use_style()
    frame, notes = _points(group)
    if frame.empty:
        why = "; ".join(notes) or "none of the finals reports any"
        raise NothingToDraw(f"no oscillation metrics: {why}")
    panels = watched.panels(group, frame)
    marks = marks_of(one.name for one in group.series)
    methods = reading_order(group, frame["method"])
    figure, blocks = style.panels(len(panels), len(_METRICS), 1.45, len(methods))
    handles: dict[str, Any] = {}
    for (title, points), block in zip(panels, blocks):
        block[0].set_title(title)
        for metric, axes in zip(_METRICS, block):
            own = points[points["metric"] == metric]
            for i, method in enumerate(name for name in methods if name in set(own["method"])):
                handles[method] = _line(axes, own[own["method"] == method], marks[method], i)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    notes += _scale_y(blocks, frame)
    style.label_left(blocks, *_METRICS.values())
    figure.supxlabel("Epoch", fontsize=8)
    seeds = f"mean and range over seeds ({style.seeds_text(frame['n'])})"
    style.legend_of(figure, [handles[method] for method in methods], methods, f"{group.title}\n{seeds}")
    return Drawing(figure, frame, (*notes, *watched.notes(group)))


def _points(group: Group) -> tuple[pd.DataFrame, list[str]]:
    lines: list[dict[str, Any]] = []
    notes: list[str] = []
    for one in group.trained:
        if not one.watched:
            notes.append(f"{one.training_label}: no bit-width was watched, not drawn")
            continue
        curves = {}  # seed -> epoch -> metrics
        for final in one.finals:
            curves[final.seed], trouble = final.epochs()
            notes += trouble
        for bits, metric in ((bits, metric) for bits in one.watched for metric in _METRICS):
            for point in _means(one.training_label, one.metric(metric, bits), curves, notes):
                lines.append(
                    {"series": one.training_label, "method": one.name, "bits": bits, "metric": metric, **point}
                )
    return pd.DataFrame(lines), list(dict.fromkeys(notes))


def _means(
    label: str, metric: str, curves: dict[int, dict[int, dict[str, Any]]], notes: list[str]
) -> list[dict[str, Any]]:
    """The epochs that every seed has reached: beyond them a mean would be over other seeds than before."""
    values: dict[int, list[float]] = {}
    for epochs in curves.values():
        for epoch, entry in epochs.items():
            value = entry.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(epoch, []).append(value)
    points = []
    for epoch in sorted(values):
        if len(values[epoch]) < len(curves):
            continue
        interval = t_interval(values[epoch])
        points.append(
            {"epoch": epoch, "n": interval.n, "mean": interval.mean,
             "half_width": interval.half_width, "low": min(values[epoch]), "high": max(values[epoch])}
        )  # fmt: skip
    partial = sorted(epoch for epoch, found in values.items() if len(found) < len(curves))
    if partial:
        notes.append(
            f"{label}: {metric} not drawn at {len(partial)} epochs ({partial[0]} to {partial[-1]}) "
            f"that not all of its {len(curves)} seeds report (runs stopped early)"
        )
    return points


def _line(axes: Axes, points: pd.DataFrame, mark: Mark, index: int) -> Any:
    epochs = np.arange(points["epoch"].min(), points["epoch"].max() + 1)
    points = points.set_index("epoch").reindex(epochs)  # nan breaks the line at an epoch that a seed lacks
    axes.fill_between(epochs, points["low"], points["high"], color=mark.color, alpha=0.18, linewidth=0)
    every = max(1, len(epochs) // 6)
    (line,) = axes.plot(
        epochs, points["mean"], **mark._asdict(), markeredgecolor="white",
        markevery=(index * every // 4 % every, every),
    )  # fmt: skip
    return line


def _scale_y(blocks: list[list[Axes]], frame: pd.DataFrame) -> list[str]:
    """A logarithmic axis where magnitudes differ much, linear between zero and the smallest decade drawn."""
    notes = []
    for row, metric in enumerate(_METRICS):
        points = frame[frame["metric"] == metric]
        means = points["mean"]
        top = np.nanmax(points[["mean", "high"]].to_numpy(float), initial=0.0)
        positive = means[means > 0]
        if positive.empty or positive.max() / positive.min() < _LINEAR_RATIO:
            notes.append(f"{metric}: y axis linear")
            for block in blocks:
                block[row].set_ylim(0, 1.08 * top or 1)
            continue
        # The 2 % quantile: one run's last flicker must not stretch the axis over decades.
        decade = 10.0 ** math.floor(math.log10(positive.quantile(0.02)))
        notes.append(f"{metric}: y axis logarithmic above {decade:g}, linear below")
        for block in blocks:
            block[row].set_yscale("symlog", linthresh=decade, linscale=0.4)
            block[row].set_ylim(0, 1.8 * top)
    return notes
