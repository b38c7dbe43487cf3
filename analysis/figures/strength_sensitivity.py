"""What a method's strength does: the validation score of every tuning trial over the setting that was searched."""

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import chosen, deployment, measure, style
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.frames import PARAMETER, chosen_after, pruned_frame, trials_frame
from analysis.marks import Mark, marks_of
from analysis.series import Group
from harness.sweep.search_space import Range

NAME, ORDER, SCOPE = "strength_sensitivity", 70, Scope.GROUP
TITLE = "Sensitivity to what was searched"
CAPTION = (
    "Validation {metric} of every tuning trial over the method's own searched setting (where no method has one, over "
    "each searched setting, such as the learning rate), one seed: at the target bit-width, and the mean over the other "
    "deployment bit-widths. The line marks the trial that the final runs use, faint "
    "dotted ones the ends of the range that was searched."
)

_CURVES = {"at_target": "at the target", "mean_of_others": "mean of the other bit-widths"}
#: Of trials that were pruned.
_PRUNED: dict[str, Any] = {"linestyle": "", "marker": "x", "color": "0.55", "markersize": 4.5}
#: From this ratio of the largest to the smallest value or end on, the axis is logarithmic.
_LOG_RATIO = 8.0
#: Below this one, 3 is labelled as well as 1.
_TWO_DECADES = 100.0
_LEAST_TRIALS = 3
#: More are no picture.
_MOST_PANELS = 15
#: Methods whose marks have room in an entry of the legend.
_IN_LEGEND = 4


def draw(group: Group) -> Drawing:
    """Points only: nothing is known between two trials."""
    style.use_style()
    frame = _points(group)
    keys = list(frame.groupby(["parameter", "method", "target_bit"], sort=False, dropna=False).groups)
    figure, blocks = style.panels(len(keys), 1, 1.75, 3, shared=False)
    for (axes,) in blocks[1:]:
        axes.sharey(blocks[0][0])
    marks = marks_of(one.name for one in group.series)
    shown: dict[Mark, None] = {}
    for (parameter, method, target), (axes,) in zip(keys, blocks):
        panel = frame[(frame["parameter"] == parameter) & (frame["method"] == method)]
        panel = panel[panel["target_bit"].isna() if pd.isna(target) else panel["target_bit"] == target]
        mark = marks.get(method, Mark("0.25", "o", "-"))
        shown[mark] = None
        _scatter(axes, panel, mark)
        name, *settings = re.split(r"(?= \()", method, maxsplit=1)
        axes.set_title(style.panel_title("".join([name if pd.isna(target) else f"{name}@{target}", *settings])))
        axes.set_xlabel(in_figure(parameter.replace("_", " ").replace(".", ": ")))
    style.label_left(blocks, measure.axis_label(group.metric, "Validation"))
    handles: list[Any] = [
        *(
            tuple(Line2D([], [], **_look(mark, filled)) for mark in list(shown)[:_IN_LEGEND])
            for filled in (True, False)
        ),
        Line2D([], [], color="0.25", linestyle=(0, (4, 2)), linewidth=0.9),
    ]
    labels, ended = [*_CURVES.values(), "chosen trial"], frame["state"] == "pruned"
    if ended.any():
        handles, labels = [*handles, Line2D([], [], **_PRUNED)], [*labels, "pruned: at the target, last epoch"]
    title = f"{group.title}: {len(frame)} tuning trials, one seed each"
    style.legend_of(figure, handles, labels, title)
    further = [target for _, _, target in keys if isinstance(target, str)]
    told = (
        f"the other bit-widths of a target such as {further[0]}: the other points with activations" if further else ""
    )
    few = _too_few(_trials(group))
    left = f"left out, with fewer than {_LEAST_TRIALS} trials: {', '.join(few)}" if few else ""
    return Drawing(figure, frame, tuple(filter(None, [told, left, chosen_after(group)])))


def _points(group: Group) -> pd.DataFrame:
    """One line per trial and searched setting: `strength` of methods; `train.learning_rate` where none has its own.

    low, high: the ends of the range that was searched, empty where it is not known. state: complete or pruned.
    """
    trials, spaces = _trials(group), chosen.search_spaces(group.settings)
    if not (parts := _parts(trials, spaces, own=True)):
        parts = _parts(trials, spaces, own=False)
        if sum(panels for _, panels in parts) > _MOST_PANELS:
            raise NothingToDraw(f"no method has a searched setting, and the others take over {_MOST_PANELS} panels")
    if not parts:
        raise NothingToDraw(f"no cell searched a setting by numbers in {_LEAST_TRIALS} trials or more")
    frame = pd.concat([part for part, _ in parts], ignore_index=True)
    targets = deployment.in_order(frame["target_bit"].dropna().tolist())
    places = frame["target_bit"].map({target: place for place, target in enumerate(targets)})
    by = ["parameter", "method", "place", "value"]
    return frame.assign(place=places).sort_values(by, ignore_index=True, kind="stable").drop(columns="place")


def _trials(group: Group) -> pd.DataFrame:
    """The finished trials, and of the pruned ones those that had reported a score at the target."""
    ended = pruned_frame(group).dropna(subset="at_target")
    finished = trials_frame(group).assign(state="complete")
    return pd.concat([finished, ended], ignore_index=True).astype({"chosen": bool}) if len(ended) else finished


def _parts(trials: pd.DataFrame, spaces: Mapping[str, Mapping[str, Any]], own: bool) -> list[tuple[pd.DataFrame, int]]:
    """The lines of each searched setting, and the panels that they take. own: settings of methods alone."""
    parts = []
    for column in (name for name in trials if name.startswith(PARAMETER)):
        parameter = column.removeprefix(PARAMETER)
        found = trials[trials[column].notna()]
        if own:
            found = _of_methods(found, parameter)
        if len(found) < _LEAST_TRIALS:
            continue
        values = pd.to_numeric(found[column], errors="coerce")
        if values.nunique() < 2:
            continue
        ends = [_ends(spaces.get(cell, {}).get(parameter)) for cell in found["cell"]]
        low, high = zip(*ends, strict=True)
        lines = found.assign(parameter=parameter, value=values, low=low, high=high)
        panels = found.groupby(["method", "target_bit"], dropna=False).ngroups
        kept = ["parameter", "value", "low", "high", "method", "target_bit", "trial", "run_id", "chosen"]
        parts.append((lines[[*kept, "state", *_CURVES]], panels))
    return parts


def _of_methods(trials: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """Those of cells whose methods the setting belongs to; none for a setting of all cells."""
    section = parameter.partition(".")[0]
    of_all = section in ("train", "model", "data", "deploy", parameter)
    return trials.head(0) if of_all else trials[trials["cell"].str.contains(section, regex=False)]


def _too_few(trials: pd.DataFrame) -> list[str]:
    """Searched settings of methods with too few trials for a picture."""
    names = [name.removeprefix(PARAMETER) for name in trials if name.startswith(PARAMETER)]
    counts = {name: len(_of_methods(trials[trials[PARAMETER + name].notna()], name)) for name in names}
    return [name for name, count in counts.items() if 0 < count < _LEAST_TRIALS]


def _ends(searched: Any) -> tuple[float, float]:
    """Those of a range; nan for a list of choices, and for what is not known."""
    return (searched.low, searched.high) if isinstance(searched, Range) else (math.nan, math.nan)


def _look(mark: Mark, filled: bool) -> dict[str, Any]:
    """Filled at the target, hollow for the other bit-widths."""
    return {
        "linestyle": "", "marker": mark.marker, "color": mark.color, "markersize": 4.5,
        "markerfacecolor": mark.color if filled else "none", "markeredgecolor": "white" if filled else mark.color,
        "markeredgewidth": 0.4 if filled else 0.9,
    }  # fmt: skip


def _scatter(axes: Axes, panel: pd.DataFrame, mark: Mark) -> None:
    finished, ended = (panel[panel["state"] == state] for state in ("complete", "pruned"))
    for curve, filled in zip(_CURVES, (True, False)):
        axes.plot(finished["value"], finished[curve], **_look(mark, filled))
    if len(ended):
        axes.plot(ended["value"], ended["at_target"], **_PRUNED)
    for value in panel.loc[panel["chosen"], "value"]:
        axes.axvline(value, color="0.25", linestyle=(0, (4, 2)), linewidth=0.9, zorder=0)
    ends = panel[["low", "high"]].stack().unique()
    for end in ends:
        axes.axvline(end, color="0.8", linestyle=":", linewidth=0.9, zorder=0)
    least, most = min([panel["value"].min(), *ends]), max([panel["value"].max(), *ends])
    axes.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))  # labels such as 0.00025 are wide
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if least > 0 and most / least >= _LOG_RATIO:
        axes.set_xscale("log")
        # Matplotlib labels the minor ticks of less than two decades, one over the other in a narrow panel.
        short = most / least < _TWO_DECADES
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if short else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # set_xscale has taken its own
        axes.xaxis.set_minor_formatter(NullFormatter())
