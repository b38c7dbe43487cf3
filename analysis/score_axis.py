"""The axis of scores: linear, or logarithmic in the distance from the best where most scores are close to it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from analysis import measure, style
from harness.core.metric import Metric

#: Where accuracies reach this high and spread this far, a linear axis squeezes what matters into a hair.
_HIGH, _SPREAD = 90.0, 20.0
_TICKS = (0, 25, 50, 75, 90, 95, 98, 100)
#: The same of any other metric: its means spread over so many margins, and the middle one is in the best part of that.
_MARGINS, _BEST_PART = 20, 0.25
#: Ticks of such an axis: distances from the best, in margins, and the room that a label takes of the axis.
_DISTANCES = (0, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_LABEL = 0.08


class Distance(NamedTuple):
    """A scale that is logarithmic in the distance from the `best` score; `offset` keeps it finite there. Up is up."""

    best: float
    offset: float
    higher: bool = True

    @property
    def _sign(self) -> int:
        return 1 if self.higher else -1

    def position(self, score: np.ndarray) -> np.ndarray:
        """Where on the axis a score lies; a little beyond the best the axis ends."""
        distance = self._sign * (self.best - np.asarray(score, float))
        return -self._sign * np.log10(np.maximum(distance, -0.9 * self.offset) + self.offset)

    def score(self, position: np.ndarray) -> np.ndarray:
        """What lies at a position."""
        power = 10.0 ** (-self._sign * np.asarray(position, float))
        return self.best + self._sign * (self.offset - power)


def scale_y(panels: Sequence[Axes], drawn: pd.DataFrame, metric: Metric) -> tuple[str, str]:
    """Scale the shared y axis for points with `mean`, `low` and `high`; returns its label and a note on it."""
    means = drawn["mean"].to_numpy(float)
    low = float(np.nanmin(drawn[["mean", "low"]].to_numpy(float)))
    high = float(np.nanmax(drawn[["mean", "high"]].to_numpy(float)))
    if metric.unit == "%" and means.max() >= _HIGH and means.max() - means.min() >= _SPREAD:
        return _percent(panels, low, metric)
    if metric.unit != "%" and _squeezed(means, metric):
        return _distance(panels, means, (low, high), metric)
    room, most = 0.04 * (high - low) + 0.2 * measure.margin(metric), measure.shown(metric, metric.high)
    panels[0].set_ylim(low - room, min(most + measure.margin(metric), high + room))
    return measure.axis_label(metric), "y axis: linear"


def _percent(panels: Sequence[Axes], low: float, metric: Metric) -> tuple[str, str]:
    ticks = [tick for tick in _TICKS if tick >= low - 12]
    if 0 in ticks:
        ticks.remove(25)  # its label would touch that of 0
    _set_scale(panels, Distance(100.0, 1.0), ticks, max(-3.0, low - 6), 100.2)
    note = f"y axis: logarithmic in the error (100 % - {metric.name}), so that differences near the top can be seen"
    return measure.axis_label(metric, scale="log-error axis"), note


def _squeezed(means: np.ndarray, metric: Metric) -> bool:
    spread = means.max() - means.min()
    best = means.max() if metric.higher_is_better else means.min()
    return bool(spread >= _MARGINS * measure.margin(metric) and abs(np.median(means) - best) < _BEST_PART * spread)


def _distance(
    panels: Sequence[Axes], means: np.ndarray, ends_drawn: tuple[float, float], metric: Metric
) -> tuple[str, str]:
    (low, high), margin = ends_drawn, measure.margin(metric)
    best, best_mean = (high, means.max()) if metric.higher_is_better else (low, means.min())
    # One wide interval beyond the means must not take half of the axis.
    scale = Distance(best, margin + abs(best - best_mean), metric.higher_is_better)
    ends = scale.position(np.array([low, high]))
    room = 0.05 * (ends[1] - ends[0])
    least, most = scale.score(np.array([ends[0] - room, ends[1] + room]))
    ticks: list[float] = []
    for tick in _round_distances(scale, margin):
        places = scale.position(np.array([tick, *ticks]))
        if low <= tick <= high and (np.abs(places[1:] - places[0]) > _LABEL * (ends[1] - ends[0])).all():
            ticks.append(tick)
    _set_scale(panels, scale, ticks, least, most)
    which = "highest" if metric.higher_is_better else "lowest"
    note = f"y axis: logarithmic in the distance from the {which} value drawn, {scale.best:.{metric.digits}f}"
    return measure.axis_label(metric, scale="log-distance axis"), note


def _round_distances(scale: Distance, margin: float) -> list[float]:
    """Round numbers at about these distances from the best."""
    found = []
    for distance in (margin * each for each in _DISTANCES):
        power = 10.0 ** math.floor(math.log10(max(distance, scale.offset)) + 1e-9)  # the axis tells no finer ones apart
        step = power / 2 if distance < 2 * power else power
        found.append(round((scale.best - distance if scale.higher else scale.best + distance) / step) * step)
    return [float(f"{tick:.10g}") for tick in dict.fromkeys(found)]


def _set_scale(panels: Sequence[Axes], scale: Distance, ticks: Sequence[float], low: float, high: float) -> None:
    for axes in panels:
        axes.set_yscale("function", functions=(scale.position, scale.score))
        style.plain_ticks(axes.yaxis, FixedLocator(ticks))
        axes.set_ylim(low, high)
