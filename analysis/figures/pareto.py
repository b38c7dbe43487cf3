"""The score at the target against the worst over all bit-widths: every tuning trial, and those that no other beats."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import deployment, measure, style
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.frames import chosen_after, trials_frame
from analysis.marks import Mark, marks_of
from analysis.series import Group, reading_order
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "pareto", 80, Scope.GROUP
TITLE = "{Metric} at the target against the worst bit-width"
CAPTION = (
    "Validation {metric} of every tuning trial at the panel's target bit-width, and the {lowest} over all deployment "
    "bit-widths, one seed. The grey line joins the trials that no other trial beats in both; circled are the trials "
    "that the final runs use. Nothing can lie {above} the dotted diagonal: the target is one of the bit-widths."
)

#: Around a trial, so that what lies below it can be seen.
_RING: dict[str, Any] = {
    "linestyle": "", "marker": "o", "markersize": 8.5, "markerfacecolor": "none", "markeredgecolor": "black",
    "markeredgewidth": 0.8,
}  # fmt: skip


def draw(group: Group) -> Drawing:
    """A panel for each target; float training, which has none, is in all of them."""
    style.use_style()
    frame, metric = _points(group), group.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    targets = deployment.in_order(frame["panel"].tolist())
    methods = reading_order(group, frame["method"])
    marks = marks_of([one.name for one in group.series] + methods)
    figure, blocks = style.panels(len(targets), 1, 1.95, len(methods) + 1, shared=False)
    for target, (axes,) in zip(targets, blocks):
        panel = frame[frame["panel"] == target]
        for method in methods:
            _scatter(axes, panel[panel["method"] == method], marks[method])
        _front(axes, panel[panel["on_front"]], metric)
        axes.set_title(f"Target: {deployment.title(target)}")
        axes.axline((0, 0), slope=1, color="0.6", linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
        _limits(axes, panel, metric)
    style.label_left(blocks, f"Worst over bit-widths,\n{measure.axis_label(metric, 'validation')}")
    figure.supxlabel(f"Validation {metric.name} at the target bit-width{unit}", fontsize=8)
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker=marks[name].marker, color=marks[name].color, markeredgecolor="white")
        for name in methods
    ]
    handles += [Line2D([], [], **_RING), Line2D([], [], color="0.45", linewidth=0.9)]
    style.legend_of(
        figure, handles, [*methods, "chosen", "Pareto front"], f"{group.title}: tuning trials, one seed each"
    )
    return Drawing(figure, frame, tuple(filter(None, [chosen_after(group)])))


def _points(group: Group) -> pd.DataFrame:
    trials = trials_frame(group)
    targets = deployment.in_order(trials["target_bit"].dropna().tolist())
    parts = []
    for target in targets:
        width = deployment.key(target)
        own = trials[(trials["target_bit"] == target) | trials["target_bit"].isna()]
        if width in own:
            parts.append(own.assign(panel=target, at_target=own[width]))
    kept = ["panel", "method", "target_bit", "trial", "run_id", "chosen", "at_target", "worst"]
    frame = pd.concat(parts, ignore_index=True)[kept].dropna(subset=["at_target", "worst"]) if parts else pd.DataFrame()
    if frame.empty:
        none = "no tuning trials" if not group.trials else ""
        raise NothingToDraw(none or "no tuning trial has a target bit-width that its network was evaluated at")
    panels = (own for _, own in frame.groupby("panel", sort=False))
    frame["on_front"] = np.concatenate([undominated(own, group.metric.higher_is_better) for own in panels])
    return frame.reset_index(drop=True)


def undominated(points: pd.DataFrame, higher_is_better: bool = True) -> np.ndarray:
    """Whether no other point is at least as good in both `at_target` and `worst`, and better in one; bool (n,)."""
    values = points[["at_target", "worst"]].to_numpy(float) * (1 if higher_is_better else -1)
    as_good = (values[None, :, :] >= values[:, None, :]).all(2)
    better = (values[None, :, :] > values[:, None, :]).any(2)
    return ~(as_good & better).any(1)


def _scatter(axes: Axes, points: pd.DataFrame, mark: Mark) -> None:
    axes.plot(
        points["at_target"], points["worst"], linestyle="", marker=mark.marker, color=mark.color, markersize=4.5,
        markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip
    chosen = points[points["chosen"]]
    axes.plot(chosen["at_target"], chosen["worst"], **_RING, zorder=3)


def _front(axes: Axes, points: pd.DataFrame, metric: Metric) -> None:
    """Stairs around what the front beats."""
    where: Literal["pre", "post"] = "pre" if metric.higher_is_better else "post"
    ordered = points.sort_values(["at_target", "worst"], ascending=[True, False])
    axes.step(ordered["at_target"], ordered["worst"], where=where, color="0.45", linewidth=0.9, zorder=1)


def _limits(axes: Axes, points: pd.DataFrame, metric: Metric) -> None:
    room, most = measure.margin(metric), measure.shown(metric, metric.high)
    for values, setter in ((points["at_target"], axes.set_xlim), (points["worst"], axes.set_ylim)):
        beside = 0.08 * (values.max() - values.min()) + 0.5 * room
        setter(values.min() - beside, min(values.max() + beside, most + room))
