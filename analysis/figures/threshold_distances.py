"""Where weights lie between the grid points: their distance to the nearest decision threshold, before and after."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from analysis import style, watched
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.intervals import t_interval
from analysis.marks import Mark, marks_of
from analysis.series import Group, Series, reading_order
from harness.records.schema import THRESHOLD_EDGES

NAME, ORDER, SCOPE = "threshold_distances", 60, Scope.GROUP
TITLE = "Distance of weights to decision thresholds"
CAPTION = (
    "Share of all weights by their distance to the nearest decision threshold, in steps of the quantizer at the "
    "watched bit-width, in bins of 0.025: 0 is on a threshold, 0.5 on a grid point. Before training, and as deployed "
    "(best epoch), mean over seeds with 95% Student-t band (of two seeds, whose band says little, from one to the "
    "other)."
)

#: Beyond half a step lie clipped weights only, in the last bin.
_EDGES = np.asarray(THRESHOLD_EDGES[:-1])
_LOG_RATIO = 8.0


def draw(group: Group) -> Drawing:
    """A panel for each watched bit-width; where methods begin with other steps, each beginning is drawn."""
    style.use_style()
    points, notes = _points(group)
    if not points:
        raise NothingToDraw("the records hold no histogram of threshold distances (runs of an older version)")
    frame, two = style.spread(pd.concat(points, ignore_index=True))
    panels = watched.panels(group, frame)
    methods = reading_order(group, frame["method"])
    marks = marks_of(one.name for one in group.series)
    figure, blocks = style.panels(len(panels), 1, 1.7, len(methods) + 1)
    handles: dict[str, Any] = {}
    for (title, panel), (axes,) in zip(panels, blocks):
        for before in _beginnings(panel):
            handles["before training"] = axes.stairs(
                before, _EDGES, baseline=None, color="0.6", linewidth=2.2, zorder=1
            )
        for method in (name for name in methods if name in set(panel["method"])):
            after = panel[(panel["method"] == method) & (panel["when"] == "after")]
            handles[method] = _curve(axes, after, marks[method])
        axes.set_title(title)
        axes.set_xlim(0, 0.5)
    _scale_y(blocks[0][0], frame)
    log = blocks[0][0].get_yscale() == "log"
    style.label_left(blocks, "Share of weights (%)" + ("\n(log axis)" if log else ""))
    figure.supxlabel("Distance to the nearest decision threshold (steps)", fontsize=8)
    labels = ["before training", *methods]
    style.legend_above(figure, [handles[label] for label in labels], labels, group.title, frame["n"], two=two)
    return Drawing(figure, frame, (*notes, *watched.notes(group)))


def _scale_y(axes: Axes, frame: pd.DataFrame) -> None:
    """Logarithmic where one bin holds many times what another does."""
    top, low = float(np.nanmax(frame[["mean", "high"]].to_numpy(float))), float(frame["mean"].min())
    if low > 0 and top / low >= _LOG_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(0.8 * low, 1.15 * top)
        style.plain_ticks(axes.yaxis, LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(0, 1.05 * top)


def _points(group: Group) -> tuple[list[pd.DataFrame], list[str]]:
    frames, notes = [], []
    for one, bits in [(series, bits) for series in group.trained for bits in series.watched]:
        counts = _counts(one, bits)
        if counts is None:
            notes.append(f"{one.training_label}: no histogram at {bits} bits in its records, not drawn")
            continue
        for when, by_seed in counts.items():
            frames.append(_shares(by_seed).assign(series=one.training_label, method=one.name, bits=bits, when=when))
            clipped = 100 * float(np.mean([seed[-1] / sum(seed) for seed in by_seed]))
            if clipped > 0:
                notes.append(f"{one.training_label}, {when}: {clipped:.2g} % of the weights are clipped and not drawn")
    return frames, notes


def _counts(one: Series, bits: int) -> dict[str, list[list[int]]] | None:
    """Counts before and after training, one list per seed; None where a seed has none."""
    found: dict[str, list[list[int]]] = {"before": [], "after": []}
    for final in one.finals:
        histogram = (final.record.get("threshold_histograms") or {}).get(str(bits)) or {}
        for when, by_seed in found.items():
            if len(histogram.get(when) or ()) != len(THRESHOLD_EDGES) - 1:
                return None
            by_seed.append(histogram[when])
    return found


def _shares(by_seed: Iterable[list[int]]) -> pd.DataFrame:
    """Mean share of the weights in each bin, in %, with its interval."""
    shares = [[100 * count / sum(counts) for count in counts[:-1]] for counts in by_seed]
    lines = []
    for place, values in enumerate(zip(*shares)):
        interval = t_interval(values)
        low, high = (max(interval.low, 0.0), interval.high) if interval.n > 1 else (np.nan, np.nan)
        lines.append(
            {"from": _EDGES[place], "to": _EDGES[place + 1], "n": interval.n, "mean": interval.mean,
             "low": low, "high": high, "lowest": min(values), "highest": max(values)}
        )  # fmt: skip
    return pd.DataFrame(lines)


def _beginnings(panel: pd.DataFrame) -> list[np.ndarray]:
    """The distinct distributions before training; one where all methods begin alike."""
    distinct: dict[bytes, np.ndarray] = {}
    for _, own in panel[panel["when"] == "before"].groupby("series", sort=False):
        values = own["mean"].to_numpy(float)
        distinct[values.round(6).tobytes()] = values
    return list(distinct.values())


def _curve(axes: Axes, points: pd.DataFrame, mark: Mark) -> Any:
    centres = (points["from"] + points["to"]) / 2
    axes.fill_between(centres, points["low"], points["high"], color=mark.color, alpha=0.18, linewidth=0)
    (line,) = axes.plot(
        centres, points["mean"], **mark._asdict(), markeredgecolor="white", markersize=3.2,
    )  # fmt: skip
    return line
