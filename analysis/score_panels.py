"""Which scores share a panel: a panel for each target, or one for each training where that would be a tangle."""

from typing import NamedTuple

import pandas as pd

from analysis import deployment, style
from analysis.marks import Mark, marks_in_order, marks_of
from analysis.series import Group, best_first, reading_order
from harness.core.bits import PlainPoint

#: From so many lines in a panel on, trainings that were deployed in several ways get a panel each.
CROWD = 10
#: More panels are no picture.
MOST_PANELS = 15


class Panel(NamedTuple):
    """Its title, the target to shade, and its points: those of `summarize` that were measured, with their `line`."""

    title: str
    target: PlainPoint | None
    points: pd.DataFrame


class Panels(NamedTuple):
    """What a figure shows. lines: in reading order; counts: the seeds of each point of a line.

    each: whether a panel is a training and a line a way of deployment; else they are a target and a method.
    """

    panels: list[Panel]
    lines: list[str]
    marks: dict[str, Mark]
    counts: dict[str, "pd.Series[int]"]
    each: bool


def arrange(group: Group, frame: pd.DataFrame, further: int) -> Panels:
    """The panels of `summarize(group)`. further: lines across all panels, which count as others do."""
    found = _by_target(group, frame)
    most = further + max(panel.points["line"].nunique() for panel in found.panels)
    if most < CROWD or len(group.trained) == len(group.series) or len(group.trained) > MOST_PANELS:
        return found
    return _by_training(group, frame)


def _by_target(group: Group, frame: pd.DataFrame) -> Panels:
    """A panel for each target, float training in each, and a line for each method."""
    lines = reading_order(group, frame["method"])
    panels = []
    targets: list[PlainPoint | None] = [*group.targets()]
    for target in targets or [None]:
        chosen = frame["target_bit"].isna() | (frame["target_bit"] == target if target else False)
        title = "Float training" if target is None else f"Target: {deployment.title(target)}"
        shaded = " (shaded)" * (target in group.points())
        points = frame[chosen & (frame["n"] > 0)]
        panels.append(Panel(title + shaded, target, points.assign(line=points["method"])))
    return Panels(panels, lines, marks_of(one.name for one in group.series), _counts(frame, frame["method"]), False)


def _by_training(group: Group, frame: pd.DataFrame) -> Panels:
    """A panel for each training, the best first within a target and float last; a line for each way of deployment."""
    ways = _ways(group)
    line = frame["series"].map(ways)
    training = frame["series"].map({one.label: one.training_label for one in group.series})
    targets = {one.training_label: one.target for one in group.trained}
    order = best_first(group.metric, targets, frame["mean"].groupby(training).mean())
    places: dict[PlainPoint | None, int] = {target: place for place, target in enumerate(group.targets())}
    panels = []
    for label in sorted(order, key=lambda name: places.get(targets[name], len(places))):
        chosen = (training == label) & (frame["n"] > 0)
        points = frame[chosen].assign(line=line[chosen])
        panels.append(Panel(style.panel_title(label), targets[label], points))
    lines = best_first(group.metric, ways.values(), frame["mean"].groupby(line).mean())
    return Panels(panels, lines, marks_in_order(ways.values()), _counts(frame, line), True)


def _ways(group: Group) -> dict[str, str]:
    """Label of each series -> its way of deployment: the parts of it that differ within the group."""
    pairs = {one.label: (one.deploy, one.scale) for one in group.series}
    varying = [len(set(parts)) > 1 for parts in zip(*pairs.values(), strict=True)]
    return {label: ", ".join(part for part, vary in zip(pair, varying) if vary) for label, pair in pairs.items()}


def _counts(frame: pd.DataFrame, line: "pd.Series[str]") -> dict[str, "pd.Series[int]"]:
    return {str(name): own for name, own in frame["n"].groupby(line)}
