"""What one network for every bit-width costs, against a network trained for each: the score at each, and the worst."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import deployment, measure, style
from analysis.deployment import is_by_layer
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.intervals import t_interval
from analysis.marks import Mark, marks_of
from analysis.paired import QAT, WORDS
from analysis.protocol import refuse_mixed_protocols
from analysis.series import Group, Series
from analysis.t_tests import compare
from harness.core.bits import FLOAT, BitWidths, PlainPoint
from harness.core.errors import UserError
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "one_checkpoint", 95, Scope.SWEEPS
TITLE = "One network for every bit-width"
CAPTION = (
    "Test {metric} of networks each of which is rounded to every bit-width, tuned (strength, learning rate, target) "
    f"for the worst of them, against {WORDS[QAT]} with a network for each bit-width, tuned for that one (where there "
    "is none for a bit-width, that for the next lower one). Mean over seeds and 95% t interval. At the right the worst "
    "bit-width of each seed: of one network, or of several that were trained apart. The points as csv hold the "
    "differences, paired by seed."
)
#: Lines up to which the legend of one panel needs no more room.
_FEW = 4
PER_BIT, WORST = f"{QAT}, a network each", "worst"


class Line(NamedTuple):
    """A line of the figure: scores as shown by seed, at each bit-width and at the worst of them."""

    label: str
    values: Mapping[str, Mapping[int, float]]
    #: The network at each bit-width.
    networks: Mapping[str, str]


def draw(groups: Sequence[Group]) -> Drawing:
    """A panel for each sweep of the first kind that has one of the second, of the same protocol."""
    pairs, reasons = [], []
    for group in groups:
        if group.objective[:1] == ("worst",):
            try:
                pairs.append((group, lines(group, _counterpart(group, groups))))
            except NothingToDraw as reason:
                reasons.append(f"{group.sweep}: {reason}")
    if not pairs:
        wanted = f"it takes a sweep tuned for the worst bit-width (objective: worst) and {_COUNTERPART}"
        raise NothingToDraw("; ".join(reasons) or wanted)
    style.use_style()
    names = [_panel_name(group, [other for other, _ in pairs]) for group, _ in pairs]
    parts = [_points(name, found, group.metric) for name, (group, found) in zip(names, pairs, strict=True)]
    frame = pd.concat(parts, ignore_index=True)
    marks = {PER_BIT: Mark("0.0", "*", "-"), **_marks([line.label for _, found in pairs for line in found[1:]])}
    rows = 4 if len(marks) > _FEW and len(pairs) == 1 else 1  # in one column of text the legend is a list
    figure, blocks = style.panels(len(pairs), 1, 2.3, rows * len(marks), shared=False)
    handles: dict[str, object] = {}
    for name, (group, found), (axes,) in zip(names, pairs, blocks, strict=True):
        _panel(axes, frame[frame["group"] == name], found, marks, handles)
        axes.set_title(in_figure(name))
        axes.set_ylabel(measure.axis_label(group.metric))
    style.label_points(figure, blocks, [point for point in dict.fromkeys(frame["bits"]) if point != WORST], [WORST])
    title = "one network rounded to every bit-width"
    style.legend_above(figure, list(handles.values()), list(handles), title, frame["n"])
    return Drawing(figure, frame, ("y axis: linear", *reasons))


def _marks(labels: Sequence[str]) -> dict[str, Mark]:
    """A mark for each line but the first: its method's; lighter for further targets of one method."""
    names = {label: label.replace("@", ", ", 1) for label in labels}
    marks = marks_of(names.values())
    return {label: marks[name] for label, name in names.items()}


_COUNTERPART = f"one tuned for each target (objective: target) with {QAT}, of one model on one data set"


def _panel_name(group: Group, drawn: Sequence[Group]) -> str:
    """Model and data set, with the sweep where others have the same."""
    return group.title if sum(other.title == group.title for other in drawn) == 1 else f"{group.sweep}: {group.title}"


def _counterpart(single: Group, groups: Sequence[Group]) -> list[Series]:
    """QAT with a network per bit-width, from the one other sweep whose runs may be compared with these."""
    found = []
    for group in groups:
        each = [one for one in group.trained if one.method == QAT and one.target is not None]
        if group.title == single.title and group.objective == ("target",) and each:
            runs = [*single.finals, *(final for one in each for final in one.finals)]
            cells = list({id(final.cell): final.cell for final in runs}.values())
            try:
                refuse_mixed_protocols("", runs, cells)
            except UserError:
                continue
            found.append((group.sweep, each))
    if len(found) != 1:
        which = f" (here: {', '.join(name for name, _ in found)})" if found else ""
        raise NothingToDraw(f"it takes {_COUNTERPART}, in the same protocol{which}")
    return found[0][1]


def lines(single: Group, each: Sequence[Series]) -> list[Line]:
    """The networks per point first, then the others; at the points (none by layer) that all were deployed at.

    Where no network was trained for a point, that for the next lower one is taken, or the lowest, of those that round
    what the point rounds; where none does, of all.
    """
    tested = [set(found) for one in (*single.trained, *each) for found in one.shown_by_seed().values()]
    bits = [point for point in deployment.in_order(set.intersection(*tested) - {FLOAT}) if not is_by_layer(point)]
    by_target = {one.target: one for one in each if one.target in bits}
    if not by_target:
        raise NothingToDraw(f"no network of {QAT} was trained for a bit-width that all were deployed at")
    chosen = {point: by_target[_nearest(point, by_target)] for point in bits}
    found = [Line(PER_BIT, *_values(chosen, single.metric))]
    return [*found, *(Line(one.label, *_values(dict.fromkeys(bits, one), single.metric)) for one in single.trained)]


def _nearest(point: PlainPoint, targets: Collection[PlainPoint]) -> PlainPoint:
    """The target itself or the next lower one, of the same kind where there is one."""
    alike = [target for target in targets if deployment.alike(target, point)]
    ordered = deployment.in_order(alike or targets)
    highest = BitWidths.of(point) if alike else BitWidths(deployment.weights(point))
    lower = [target for target in ordered if BitWidths.of(target) <= highest]
    return lower[-1] if lower else ordered[0]


def _values(
    networks: Mapping[PlainPoint, Series], metric: Metric
) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """Scores by bit-width and seed, of the seeds that have all; then the networks' names."""
    columns = {
        bits: {seed: found[bits] for seed, found in one.shown_by_seed().items()} for bits, one in networks.items()
    }
    seeds = sorted(set.intersection(*(set(column) for column in columns.values())))
    values = {str(bits): {seed: column[seed] for seed in seeds} for bits, column in columns.items()}
    values[WORST] = {seed: metric.worst(column[seed] for column in columns.values()) for seed in seeds}
    names = {str(bits): one.label for bits, one in networks.items()}
    return values, {**names, WORST: "/".join(dict.fromkeys(names.values()))}


def _points(title: str, found: Sequence[Line], metric: Metric) -> pd.DataFrame:
    """One line per network and bit-width; `cost`: what it loses to the networks trained for each, with its interval."""
    rows = []
    for line in found:
        for place, by_seed in line.values.items():
            interval = t_interval(list(by_seed.values()))
            better, worse = found[0].values[place], by_seed
            cost = compare(*((better, worse) if metric.higher_is_better else (worse, better)), 0.0)
            rows.append(
                {
                    "group": title, "series": line.label, "bits": place, "network": line.networks[place],
                    "n": interval.n, "mean": interval.mean, "low": interval.low, "high": interval.high,
                    "cost": cost.effect, "cost_low": cost.low, "cost_high": cost.high,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _panel(
    axes: Axes, frame: pd.DataFrame, found: Sequence[Line], marks: Mapping[str, Mark], handles: dict[str, object]
) -> None:
    places = list(found[0].values)
    for i, line in enumerate(found):
        mark, points = marks[line.label], frame[frame["series"] == line.label].set_index("bits").reindex(places)
        x = np.arange(len(places)) + (i - (len(found) - 1) / 2) * min(0.09, 0.6 / len(found))
        mean = points["mean"].to_numpy(float)
        spread = np.nan_to_num(np.vstack([mean - points["low"], points["high"] - mean]))
        further = [place != WORST and deployment.kind(place) == "activations" for place in places]
        plain = np.flatnonzero(~np.array(further))
        look = {**mark._asdict(), **style.BARS}
        # The worst is no bit-width: no line leads there. Points with activations have a line of their own.
        for part, shown in ((plain[:-1], look), (plain[-1:], look), (np.flatnonzero(further), style.hollow(mark))):
            if len(part):
                drawn = axes.errorbar(
                    x[part], mean[part], yerr=spread[:, part], **shown, markersize=6 if mark.marker == "*" else 4.5
                )
                handles.setdefault(line.label, drawn[0])
    axes.axvline(len(places) - 1.5, color="0.7", linewidth=0.6)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
