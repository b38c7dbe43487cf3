"""What one network for every bit-width costs, against a network trained for each: accuracy at each, and the worst."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.paired import QAT, WORDS, accuracies, compare
from analysis.series import Group, Series
from analysis.statistics import t_interval

NAME, ORDER, SCOPE = "one_checkpoint", 95, Scope.SWEEPS
TITLE = "One network for every bit-width"
CAPTION = (
    "Test accuracy of networks each of which is rounded to every bit-width, tuned (strength, learning rate, target) "
    f"for the worst of them, against {WORDS[QAT]} with a network for each bit-width, tuned for that one. Mean over "
    "seeds and 95% t interval; at the right the worst bit-width of each seed. The points as csv hold the differences, "
    "paired by seed."
)
PER_BIT, WORST = f"{QAT}, a network each", "worst"


class Line(NamedTuple):
    """A line of the figure: accuracies in % by seed, at each bit-width and at the worst of them."""

    label: str
    values: Mapping[str, Mapping[int, float]]
    #: The network at each bit-width.
    networks: Mapping[str, str]


def draw(groups: Sequence[Group]) -> Drawing:
    """A panel for each model and data set that has both kinds of sweep."""
    pairs = []
    for title in dict.fromkeys(group.title for group in groups):
        own = [group for group in groups if group.title == title]
        single = [one for group in own if "worst" in group.objective for one in group.series if one.first]
        each = [one for group in own if group.objective == ("target",) for one in group.series if one.method == QAT]
        if single and each:
            pairs.append((title, lines(single, each)))
    if not pairs:
        raise NothingToDraw(
            "it takes a sweep tuned for the worst bit-width (objective: worst) and one tuned for each target "
            f"(objective: target) with {QAT}, of one model on one data set"
        )
    style.use_style()
    frame = pd.concat([_points(title, found) for title, found in pairs], ignore_index=True)
    names = list(dict.fromkeys(line.label.partition("@")[0] for _, found in pairs for line in found[1:]))
    marks = {PER_BIT: style.Mark("0.0", "*", "-"), **style.marks(names)}
    figure, blocks = style.panels(len(pairs), 1, 2.3, len(names) + 1, shared=False)
    handles: dict[str, object] = {}
    for (title, found), (axes,) in zip(pairs, blocks, strict=True):
        _panel(axes, frame[frame["group"] == title], found, marks, handles)
        axes.set_title(title)
        axes.set_ylabel("Test accuracy (%)")
    figure.supxlabel("Deployment bit-width", fontsize=8)
    labels = list(handles)
    style.legend_above(figure, list(handles.values()), labels, "one network rounded to every bit-width", frame["n"])
    return Drawing(figure, frame, ("y axis: linear",))


def lines(single: Sequence[Series], each: Sequence[Series]) -> list[Line]:
    """The networks a bit-width first, then the others; at the bit-widths that all were deployed at.

    Where no network was trained for a bit-width, that for the next lower one stands there.
    """
    tested = [set(found) for one in (*single, *each) for found in accuracies(one).values()]
    bits = sorted(b for b in set.intersection(*tested) if isinstance(b, int))
    by_target = {one.target: one for one in each if one.target in bits}
    chosen = {b: by_target[max((t for t in by_target if t <= b), default=min(by_target))] for b in bits}
    found = [Line(PER_BIT, *_values({b: chosen[b] for b in bits}))]
    return [*found, *(Line(one.label, *_values(dict.fromkeys(bits, one))) for one in single)]


def _values(networks: Mapping[int, Series]) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """Accuracies by bit-width and seed, of the seeds that have all; then the networks' names."""
    columns = {bits: {seed: found[bits] for seed, found in accuracies(one).items()} for bits, one in networks.items()}
    seeds = sorted(set.intersection(*(set(column) for column in columns.values())))
    values = {str(bits): {seed: column[seed] for seed in seeds} for bits, column in columns.items()}
    values[WORST] = {seed: min(column[seed] for column in columns.values()) for seed in seeds}
    names = {str(bits): one.label for bits, one in networks.items()}
    return values, {**names, WORST: "/".join(dict.fromkeys(names.values()))}


def _points(title: str, found: Sequence[Line]) -> pd.DataFrame:
    """A line a network and bit-width; `cost`: how far it is below the networks trained for each, with its interval."""
    rows = []
    for line in found:
        for place, by_seed in line.values.items():
            interval = t_interval(list(by_seed.values()))
            cost = compare(found[0].values[place], by_seed, 0.0)
            rows.append(
                {
                    "group": title, "series": line.label, "bits": place, "network": line.networks[place],
                    "n": interval.n, "mean": interval.mean, "low": interval.low, "high": interval.high,
                    "cost": cost.effect, "cost_low": cost.low, "cost_high": cost.high,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _panel(
    axes: Axes, frame: pd.DataFrame, found: Sequence[Line], marks: Mapping[str, style.Mark], handles: dict[str, object]
) -> None:
    places = list(found[0].values)
    for i, line in enumerate(found):
        method = line.label if line.label == PER_BIT else line.label.partition("@")[0]
        mark, points = marks[method], frame[frame["series"] == line.label].set_index("bits").reindex(places)
        x = np.arange(len(places)) + (i - (len(found) - 1) / 2) * min(0.09, 0.6 / len(found))
        mean = points["mean"].to_numpy(float)
        spread = np.nan_to_num(np.vstack([mean - points["low"], points["high"] - mean]))
        for part in (slice(0, -1), slice(-1, None)):  # the worst is no bit-width: no line leads there
            drawn = axes.errorbar(
                x[part], mean[part], yerr=spread[:, part], color=mark.color, marker=mark.marker,
                linestyle=mark.linestyle, markeredgecolor="white", elinewidth=0.8, capsize=1.5, capthick=0.8,
                markersize=6 if mark.marker == "*" else 4.5,
            )  # fmt: skip
            handles.setdefault(line.label, drawn[0])
    axes.axvline(len(places) - 1.5, color="0.7", linewidth=0.6)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
