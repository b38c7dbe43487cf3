"""Methods over all models, data sets and bit-widths of a root: performance profile and interquartile mean."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from analysis import deployment, profiles, style
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.marks import marks_of
from analysis.profiles import Benchmark, Floats
from analysis.series import Group, Series
from harness.core.bits import FLOAT

NAME, ORDER, SCOPE = "performance_profile", 100, Scope.ROOT
TITLE = "Methods over models, data sets and bit-widths"
CAPTION = (
    "A task is one model on one data set deployed at one bit-width; a score is a run's test {metric} there, relative "
    "to the float {metric} of float training of that model on that data where all have it{inverse}. Left: the share "
    "of all scores, over tasks and seeds, that are at least τ. Right: the mean of the middle half of all scores. Bands "
    "and bars: 95% intervals of a bootstrap that draws seeds anew within each task (Agarwal et al. 2021)."
)

#: How the targets of one method differ, in ascending order: face of the marker, width of the line.
_FACES: tuple[Any, ...] = ("full", "hollow", "bottom", "left", "top", "right")
_WIDTHS = (1.4, 0.9, 0.6)
_THRESHOLDS = 401
_MEANS, _PROFILE = "interquartile mean", "profile"  # the panels, as the frame names them
# Where the middle score lies this far up the range, a linear axis squeezes most scores into a hair.
_HIGH = 0.85
#: Added to the distance from the best score, as a share of the score in float, before its logarithm is taken.
_OFFSET = 0.02
#: The more telling first: of two whose labels would touch, it stays.
_TICKS = np.array([1.0, 0.9, 0.5, 0.8, 0.95, 0.0, 0.98, 1.1, 0.7, 1.05, 1.2, 0.2, 0.6, 0.4, 1.5])
_LABEL_WIDTH = 0.085  # of a tick, as a share of the axis


def draw(groups: Sequence[Group]) -> Drawing:
    """Profile on the left, interquartile means on the right; methods in one order in both and in the legend."""
    if len({group.title for group in groups}) < 2:
        raise NothingToDraw("the root holds one model on one data set; this needs several")
    benchmark = profiles.collect(groups)
    if len(benchmark.scores) < 2:
        raise NothingToDraw("; ".join(["fewer than two methods have a run in every task", *benchmark.notes]))
    style.use_style()
    axis = _Axis.fitting(benchmark)
    # Of the groups that take part alone: another may have the same training under several ways of deployment.
    frame = _points(benchmark.groups, benchmark, axis)
    methods = list(frame.loc[frame["panel"] == _MEANS, "series"])
    looks = _looks(benchmark.groups, methods)
    height = max(1.7, 0.17 * len(methods) + 0.75) + 0.32 + 0.16 * -(-len(methods) // 4)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(style.venue().page, height), width_ratios=(1.5, 1),
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.04),
    )  # fmt: skip
    for i, method in enumerate(methods):
        _draw_profile(left, frame[(frame["panel"] == _PROFILE) & (frame["series"] == method)], looks[method], i)
    _draw_means(right, frame[frame["panel"] == _MEANS], looks)
    axis.dress(left)
    metric = benchmark.groups[0].metric
    unit = "relative to float" if benchmark.relative else f"({metric.unit})" if metric.unit else ""
    whole = metric.name if metric.higher_is_better or not benchmark.relative else f"{metric.name}, inverse,"
    label = f"Test {whole} {unit}, $\\tau$" + (" (log-error axis)" if axis.log else "")
    left.set(xlabel=label, ylabel="Share of scores $\\geq\\tau$", ylim=(-0.04, 1.04))
    right.set(xlabel=f"Interquartile mean{',' if benchmark.relative else ''} {unit}".rstrip())
    handles = [Line2D([], [], **looks[method]) for method in methods]
    style.legend_of(figure, handles, methods, _legend_title(benchmark))
    return Drawing(figure, frame, (*benchmark.notes, *_seed_notes(benchmark), axis.note), benchmark.groups)


class _Axis(NamedTuple):
    """The axis of thresholds, from `low` to `high` (the extreme scores) and a margin."""

    low: float
    high: float
    unit: float  # the score of float training, or the highest there can be: 100 %
    log: bool

    @classmethod
    def fitting(cls, benchmark: Benchmark) -> "_Axis":
        """Linear, or logarithmic in the distance from the best score where most scores are close to it."""
        scores = np.concatenate([profiles.pooled(own) for own in benchmark.scores.values()])
        low, high = float(scores.min()), float(scores.max())
        unit = 1.0 if benchmark.relative else benchmark.highest
        log = math.isfinite(unit) and bool(np.median(scores) - low > _HIGH * (high - low))
        return cls(low, high, unit if math.isfinite(unit) else high, log)

    @property
    def note(self) -> str:
        kind = f"logarithmic in the distance from the best score, {self.high:.4g}" if self.log else "linear"
        return f"axis of thresholds: {kind}"

    def position(self, score: Any) -> Floats:
        """Where on the axis a score lies; beyond the best score the axis ends."""
        score = np.asarray(score, float)
        return -np.log10(np.maximum(self.high - score, -0.9 * self._offset) + self._offset) if self.log else score

    def score(self, position: Any) -> Floats:
        """What lies at a position."""
        position = np.asarray(position, float)
        return self.high + self._offset - 10.0**-position if self.log else position

    @property
    def _offset(self) -> float:
        return _OFFSET * self.unit

    def thresholds(self) -> Floats:
        """Evenly spaced on the axis, from a little below the worst score to a little above the best."""
        low, high = self.position([self.low, self.high])
        margin = 0.02 * (high - low) or 0.01 * self.unit
        return self.score(np.linspace(low - margin, high + margin, _THRESHOLDS))

    def dress(self, axes: Axes) -> None:
        """Set the scale, the limits and, on a logarithmic axis, ticks that do not touch."""
        ends = self.thresholds()[[0, -1]]
        if self.log:
            axes.set_xscale("function", functions=(self.position, self.score))
            style.plain_ticks(axes.xaxis, FixedLocator(self._ticks(*ends)))
        axes.set_xlim(*ends)

    def _ticks(self, low: float, high: float) -> list[float]:
        ticks: list[float] = []
        width = self.position(high) - self.position(low)
        for tick in _TICKS * self.unit:
            gaps = [abs(self.position(tick) - self.position(other)) for other in ticks]
            if low <= tick <= high and all(gap > _LABEL_WIDTH * width for gap in gaps):
                ticks.append(float(tick))
        return ticks


def _points(groups: Sequence[Group], benchmark: Benchmark, axis: _Axis) -> pd.DataFrame:
    """The interquartile means from the highest to the lowest, float training last, and the profiles likewise."""
    by_label = _by_label(groups)
    thresholds = axis.thresholds()
    means, curves = [], []
    for method, own in benchmark.scores.items():
        scores, samples = profiles.pooled(own), profiles.resample(own)
        shared = {"series": method, "method": by_label[method].name, "target_bit": by_label[method].target,
                  "n_tasks": len(own), "n_scores": len(scores)}  # fmt: skip
        one_seed = len(scores) == len(own)
        low, high = (np.nan, np.nan) if one_seed else profiles.interval(profiles.interquartile_mean(samples))
        value = float(profiles.interquartile_mean(scores))
        means.append({"panel": _MEANS, **shared, "threshold": np.nan, "value": value, "low": low, "high": high})
        low, high = (np.nan, np.nan) if one_seed else profiles.interval(profiles.profile(samples, thresholds))
        curve = {"threshold": thresholds, "value": profiles.profile(scores, thresholds), "low": low, "high": high}
        curves.append(pd.DataFrame({"panel": _PROFILE, **shared, **curve}))
    table = pd.DataFrame(means)
    order = sorted(table.index, key=lambda i: (table["method"][i].startswith(FLOAT), -table["value"][i]))
    frame = pd.concat([table.loc[order], *(curves[i] for i in order)], ignore_index=True)
    frame["target_bit"] = deployment.tidy(frame["target_bit"])
    return frame


def _by_label(groups: Sequence[Group]) -> dict[str, Series]:
    """A series for each training label: the first of that label, under its first way of deployment."""
    found: dict[str, Series] = {}
    for one in (one for group in groups for one in group.trained):
        found.setdefault(one.training_label, one)
    return found


def _looks(groups: Sequence[Group], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash by method, as in the other figures; marker's face and line's width by target."""
    marks = marks_of(one.name for group in groups for one in group.series)
    by_label = _by_label(groups)
    ordered = deployment.in_order(target for group in groups for target in group.targets())
    looks = {}
    for label in methods:
        one = by_label[label]
        mark = marks[one.name]
        targets = [by_label[other].target for other in methods if by_label[other].name == one.name]
        i = sorted(targets, key=lambda target: -1 if target is None else ordered.index(target)).index(one.target)
        face = _FACES[i % len(_FACES)]
        looks[label] = {
            **mark._asdict(), "markersize": 4.5,
            "linewidth": _WIDTHS[min(i, len(_WIDTHS) - 1)], "markeredgecolor": mark.color, "markeredgewidth": 0.8,
            "markerfacecolor": "white" if face == "hollow" else mark.color, "markerfacecoloralt": "white",
            "fillstyle": "full" if face == "hollow" else face,
        }  # fmt: skip
    return looks


def _draw_profile(axes: Axes, points: pd.DataFrame, look: dict[str, Any], index: int) -> None:
    """A line with its band, its markers shifted against those of the other methods."""
    axes.fill_between(points["threshold"], points["low"], points["high"], color=look["color"], alpha=0.13, linewidth=0)
    every = _THRESHOLDS // 8
    start = (every // 4 + every * index // 5) % every
    axes.plot(points["threshold"], points["value"], **look, markevery=(start, every))


def _draw_means(axes: Axes, means: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """A point and its interval for each method, the first on top."""
    for place, point in enumerate(means.itertuples()):
        look = looks[point.series]
        axes.plot([point.low, point.high], [place, place], color=look["color"], linewidth=1.1, solid_capstyle="butt")
        axes.plot([point.value], [place], **{**look, "linestyle": "none"})
    axes.set_yticks(range(len(means)), list(map(in_figure, means["series"])))
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _legend_title(benchmark: Benchmark) -> str:
    counts = benchmark.seeds()
    spread = "one seed, no interval" if max(counts) == 1 else "95% bootstrap intervals over seeds"
    return f"{len(benchmark.tasks)} tasks (model, data set, bit-width), {style.seeds_text(counts)} seeds each; {spread}"


def _seed_notes(benchmark: Benchmark) -> list[str]:
    """What the intervals do not say."""
    counts = benchmark.seeds()
    metric = benchmark.groups[0].metric.name
    notes = [f"intervals are over seeds: of other tasks, and of the float {metric} divided by, they say nothing"]
    if 1 < min(counts) < 5:
        notes.append("a bootstrap over so few seeds is narrow, for n of them by about sqrt((n - 1) / n)")
    if len(set(counts)) > 1:
        single = f", and the {counts.count(1)} with one add nothing to an interval" if 1 in counts else ""
        notes.append(f"tasks have {min(counts)} to {max(counts)} seeds: one with more weighs more{single}")
    return notes
