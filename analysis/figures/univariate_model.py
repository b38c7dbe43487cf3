"""The theory's model, one weight of a linear map: QAT and the regularizer oscillate, float training does not."""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from analysis import style, univariate
from analysis.figures import Drawing, Scope
from analysis.marks import marks_of
from analysis.univariate import Kind, Values

NAME, ORDER, SCOPE = "univariate_model", 10, Scope.THEORY
TITLE = "The univariate linear model"
CAPTION = (
    "Gradient descent on one weight w of y = wx with the loss (w - w*)²/2, on a grid of step s; t is the decision "
    "threshold nearest to w*, d the distance from w* to its nearest grid level. (a) Training at learning rate 0.3: QAT "
    "and the regularizer λ(q² - w²) drive w past w* to t. (b) Oscillations per step (learning rate 0.01): 2d/s for "
    "QAT, 1 - |w* - t|/(λs) or 0 for the regularizer, which is QAT at λ = 1/2. (c) Peak-to-peak amplitude against "
    "the learning rate η: at most ηs for QAT, 2ληs for the regularizer. Markers are simulated, lines are analysis."
)

#: In units of s, above a level. Irrational, so that no orbit is short: at a rational d / s = m / n the amplitude of
#: QAT is 1/n below its bound, which would look like a deviation in panel (c).
_TARGET = (5**0.5 - 1) / 4
_THRESHOLD = 0.5
#: Labels and heights of the lines in panel (a).
_REFERENCES = (("grid level", 0.0), ("$w^*$", _TARGET), ("threshold $t$", _THRESHOLD), ("grid level", 1.0))
#: Panel (a): few enough steps and long enough ones to see each. Lambda is not 1/2, which would look like QAT.
_STEPS, _RATE_A, _STRENGTH_A = 50, 0.3, 0.25
#: Panel (b): the analysis is of small learning rates but for lambda 1/2. The distances miss 0 and 1/2, where what
#: happens depends on where w starts.
_RATE_B, _STEPS_B = 0.01, 4000
_DISTANCES = (np.arange(12) + 0.5) / 24
_RATES_C, _STEPS_C = np.geomspace(1e-3, 0.3, 9), 4000
_NAMES: dict[Kind, str] = {"ste": "QAT (straight-through)", "oscillation": "regularizer", "float": "float training"}
_FRACTIONS = {1.0: "1", 0.5: "1/2", 0.25: "1/4"}


class _Variant(NamedTuple):
    """A kind of training, and lambda; nan where there is none."""

    kind: Kind
    strength: float = float("nan")

    @property
    def series(self) -> str:
        name = _NAMES[self.kind]
        return name if self.kind != "oscillation" else f"{name}, λ = {_FRACTIONS[self.strength]}"


_LEGEND = "markers: simulated; lines in (b) and (c): analysis"
_ONE_LINE = 6.2  # inches that the legend takes on one line
#: In order of the legend: from the highest peaks in panel (a) to none, lambda from the top down in (b) and (c).
_VARIANTS = (_Variant("ste"), *(_Variant("oscillation", strength) for strength in _FRACTIONS), _Variant("float"))


def draw() -> Drawing:
    """Simulated anew at each call: a second of arithmetic, no random numbers."""
    style.use_style()
    frame = pd.concat([*_training(), *_rates(), *_amplitudes()], ignore_index=True)
    figure, (training, rates, amplitudes) = plt.subplots(
        1, 3, figsize=(style.venue().page, 2.3), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.04),
        width_ratios=(1.35, 1, 1),
    )  # fmt: skip
    _draw_training(training, frame[frame["panel"] == "a"])
    _draw_rates(rates, frame[frame["panel"] == "b"])
    _draw_amplitudes(amplitudes, frame[frame["panel"] == "c"])
    for letter, title, axes in zip("abc", ("Training", "Oscillation rate", "Amplitude"), figure.axes):
        axes.set_title(f"({letter}) {title}")
    _legend(figure)
    return Drawing(figure, frame, (f"d/s = {_TARGET:.4f} in panels a and c; lengths in units of s",))


def _points(panel: str, variant: _Variant, origin: str, x: Values, y: Values) -> pd.DataFrame:
    """Rows of the figure's frame. origin: `simulated` or `analysis`."""
    return pd.DataFrame(
        {"panel": panel, "series": variant.series, "method": variant.kind, "lambda": variant.strength,
         "x": x, "y": y, "kind": origin}
    )  # fmt: skip


def _training() -> list[pd.DataFrame]:
    """Panel (a): training step -> w from a grid level on, and the heights of the reference lines."""
    steps = np.arange(_STEPS + 1, dtype=float)
    frames = []
    for variant in (_Variant("ste"), _Variant("oscillation", _STRENGTH_A), _Variant("float")):
        path = univariate.simulate(variant.kind, _TARGET, variant.strength, _RATE_A, _STEPS, 0.0)
        frames.append(_points("a", variant, "simulated", steps, path))
    for text, height in _REFERENCES:
        line = {"panel": "a", "series": text.replace("$", ""), "x": [0.0, _STEPS], "y": height, "kind": "analysis"}
        frames.append(pd.DataFrame(line))
    return frames


def _rates() -> list[pd.DataFrame]:
    """Panel (b): d / s -> oscillations per step."""
    line = np.linspace(0, 0.5, 101)
    frames = []
    for variant in _VARIANTS:
        # Where markers of two series would coincide (QAT and lambda 1/2, float and lambda 1/4), each has its own.
        distances = _DISTANCES[1::2] if variant.kind == "ste" or variant.strength == 0.25 else _DISTANCES[::2]
        paths = univariate.simulate(variant.kind, distances, variant.strength, _RATE_B, _STEPS_B, _THRESHOLD)
        frames.append(_points("b", variant, "simulated", distances, univariate.oscillation_rate(paths)))
        expected = univariate.expected_rate(variant.kind, line, variant.strength)
        frames.append(_points("b", variant, "analysis", line, expected))
    return frames


def _amplitudes() -> list[pd.DataFrame]:
    """Panel (c): learning rate -> peak-to-peak amplitude in units of s. Float training has no place on its axis."""
    frames = []
    for variant in _VARIANTS[:-1]:
        rates = _RATES_C[1::2] if variant.kind == "ste" else _RATES_C[::2]
        paths = univariate.simulate(variant.kind, _TARGET, variant.strength, rates, _STEPS_C, _THRESHOLD)
        frames.append(_points("c", variant, "simulated", rates, univariate.amplitude(paths)))
        bound = univariate.largest_amplitude(variant.kind, _RATES_C, variant.strength)
        frames.append(_points("c", variant, "analysis", _RATES_C, bound))
    return frames


def _draw_training(axes: Axes, frame: pd.DataFrame) -> None:
    marks = marks_of(_NAMES)
    for kind in _NAMES:
        points, mark = frame[frame["method"] == kind], marks[kind]
        axes.plot(
            points["x"], points["y"], **mark._asdict(), markersize=2.4, markeredgewidth=0, linewidth=0.8,
        )  # fmt: skip
    for text, height in _REFERENCES:
        axes.axhline(height, color="0.35", linewidth=0.6, linestyle="--" if height == _THRESHOLD else "-", zorder=1)
        axes.annotate(text, (_STEPS, height), (2, 0), textcoords="offset points", va="center", fontsize=7)
    axes.grid(False)
    axes.set(xlabel="Training step", ylabel="Weight $w$ (units of $s$)", xlim=(0, _STEPS), ylim=(-0.06, 1.06))


def _draw_rates(axes: Axes, frame: pd.DataFrame) -> None:
    _draw_variants(axes, frame)
    axes.set(xlabel="Grid distance $d/s$", ylabel="Oscillations (1/step)")
    axes.set(xlim=(0, 0.5), ylim=(-0.05, 1.05))
    axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5]))


def _draw_amplitudes(axes: Axes, frame: pd.DataFrame) -> None:
    _draw_variants(axes, frame)
    axes.set(xscale="log", yscale="log", xlabel="Rate $\\eta$", ylabel="Peak to peak (units of $s$)")
    for axis in (axes.xaxis, axes.yaxis):
        style.plain_ticks(axis, FixedLocator([1e-3, 1e-2, 1e-1]))


def _draw_variants(axes: Axes, frame: pd.DataFrame) -> None:
    """Each series' analysis as a thin line, its simulation as markers."""
    for variant in _VARIANTS:
        points = frame[frame["series"] == variant.series]
        line, simulated = (points[points["kind"] == origin] for origin in ("analysis", "simulated"))
        look = _look(variant)
        axes.plot(line["x"], line["y"], **{**look, "marker": None})
        axes.plot(simulated["x"], simulated["y"], zorder=3, **{**look, "linestyle": "none"})


def _look(variant: _Variant) -> dict[str, Any]:
    """Colour, marker and dash of a kind of training; filled, half filled or hollow by lambda."""
    mark = marks_of(_NAMES)[variant.kind]
    filling = {0.5: "bottom"}.get(variant.strength, "full")
    return {
        **mark._asdict(), "linewidth": 0.8, "markersize": 4,
        "markeredgecolor": mark.color, "markeredgewidth": 0.8, "fillstyle": filling, "markerfacecoloralt": "white",
        "markerfacecolor": "white" if variant.strength == 1 else mark.color,
    }  # fmt: skip


def _legend(figure: Figure) -> None:
    """One for all panels, a line that reads from left to right."""
    labels = [variant.series for variant in _VARIANTS]
    labels[2:4] = [label.removeprefix("regularizer, ") for label in labels[2:4]]
    if figure.get_figwidth() < _ONE_LINE:  # several lines: the short labels would lose what they continue
        labels = [variant.series for variant in _VARIANTS]
        style.legend_of(figure, [Line2D([], [], **_look(variant)) for variant in _VARIANTS], labels, _LEGEND)
        return
    figure.legend(
        [Line2D([], [], **_look(variant)) for variant in _VARIANTS], labels, ncols=len(labels), frameon=False,
        title=style.title_of(_LEGEND, figure), loc="outside upper center", handlelength=2.6, columnspacing=1.2,
        handletextpad=0.5, borderaxespad=0.1,
    )  # fmt: skip
