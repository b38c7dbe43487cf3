"""Which training survives which rounding: the score of each training under each deploy method, and what that took."""

import math
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis import deployment, measure, style
from analysis.escape import in_figure
from analysis.figures import Drawing, NothingToDraw, Scope
from analysis.intervals import t_interval
from analysis.series import Group
from harness.core.metric import Metric

NAME, ORDER, SCOPE = "deploy_matrix", 15, Scope.GROUP
TITLE = "Training and rounding"
CAPTION = (
    "Test {metric}{unit} of every training (rows, with its target) under every deploy method (columns), a panel "
    "for each deployment point: mean over seeds and half of the 95% Student-t interval, of two seeds the lowest and "
    "highest. Darker is {higher}, within a panel. Below a method: the median time, and the most memory beyond what was "
    "in use, that deploying one network took. A method that does not serve a point has no column there."
)

_ROW_INCHES, _HEAD_INCHES = 0.28, 1.0
#: Of a column at least; where its cells say from where to where two seeds are; and for each character of its head.
_COLUMN_INCHES, _RANGE_INCHES, _CHARACTER_INCHES = 0.38, 0.56, 0.045


def draw(group: Group) -> Drawing:
    """Points at which at least two deploy methods were evaluated."""
    style.use_style()
    frame = _cells(group)
    points = list(dict.fromkeys(frame["bits"]))
    trainings = list(dict.fromkeys(frame["training"]))
    height = _ROW_INCHES * len(trainings) + _HEAD_INCHES
    narrowest = _panel_inches(frame)
    figure, blocks = style.panels(len(points), 1, height, 1, shared=False, narrowest=narrowest)
    columns = style.panel_columns(len(points), narrowest)
    for place, (point, (axes,)) in enumerate(zip(points, blocks)):
        own = frame[frame["bits"] == point]
        _panel(axes, own, trainings, group.metric, labelled=place % columns == 0)
        axes.set_title(in_figure(f"{point} bits" if point.isdigit() else point))
    counts = frame.loc[frame["n"] > 0, "n"].unique().tolist()
    title = in_figure(f"{group.title}: {style.seeds_text(counts)}")
    figure.suptitle(style.title_of(title, figure) or "", fontsize=8)
    figure.supylabel("Training, with its target", fontsize=7)
    recorded = frame["deploy_s"].notna().any()
    figure.supxlabel(_legend(group.metric, counts, bool(recorded)), fontsize=7)
    return Drawing(figure, frame, () if recorded else ("the records do not say what a deployment took",))


def _legend(metric: Metric, counts: list[int], recorded: bool) -> str:
    """What cells and heads are, for a picture without its caption."""
    spread = {1: "", 2: ", lowest to highest"}.get(max(counts), " ± half of the 95% interval")
    took = ", and what one deployment took" if recorded else ""
    return f"Deployment{took}. Cells: {measure.full_label(metric, 'test')}{spread}"


def _panel_inches(frame: pd.DataFrame) -> float:
    """What the panel with the most columns needs, without its labels."""
    shown = frame[frame["n"] > 0]
    longest = max(len(word) for way in shown["deploy"] for word in way.split("_"))
    column = _RANGE_INCHES if (frame["n"] == 2).any() else _COLUMN_INCHES
    return float(shown.groupby("bits")["deploy"].nunique().max() * max(column, _CHARACTER_INCHES * (longest + 1)))


def _cells(group: Group) -> pd.DataFrame:
    """A line for each point, training and way of deployment. deploy_s: median; deploy_peak_mib: the most."""
    ways = list(dict.fromkeys((one.deploy, one.scale) for one in group.series))
    scales = {scale for _, scale in ways}
    lines = []
    for point in group.points():
        found = [one for one in group.series if one.scores(point)]
        if len({(one.deploy, one.scale) for one in found}) < 2:
            continue
        for one in group.series:
            values = [measure.shown(group.metric, value) for value in one.scores(point)]
            interval = t_interval(values)
            seconds, mebibytes = one.deployment_cost([point])
            lines.append(
                {
                    "bits": str(point), "training": one.training_label, "target_bit": one.target,
                    "deploy": one.deploy if len(scales) == 1 else f"{one.deploy}, {one.scale}", "n": interval.n,
                    "mean": interval.mean, "half_width": interval.half_width, "lowest": min(values, default=math.nan),
                    "highest": max(values, default=math.nan), "deploy_s": seconds, "deploy_peak_mib": mebibytes,
                }
            )  # fmt: skip
    if not lines:
        raise NothingToDraw("no deployment point has rows of two deploy methods (deploy.methods)")
    frame = pd.DataFrame(lines)
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]))


def _panel(axes: Axes, own: pd.DataFrame, trainings: list[str], metric: Metric, labelled: bool) -> None:
    ways = list(dict.fromkeys(own.loc[own["n"] > 0, "deploy"]))
    cells = own.set_index(["training", "deploy"])
    means = cells["mean"].unstack().reindex(index=trainings, columns=ways).to_numpy(float)
    # Not the whole scale: text has to be read on all of its colours.
    colours = sns.light_palette("#3b7ea1", as_cmap=True)
    better = means if metric.higher_is_better else -means
    low, high = float(np.nanmin(better)), float(np.nanmax(better))
    norm = Normalize(low - 0.05 * (high - low), high + 0.6 * (high - low) + 1e-9)
    axes.imshow(np.ma.masked_invalid(better), cmap=colours.with_extremes(bad="white"), norm=norm, aspect="auto")
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            text = _text(cells.loc[(trainings[row], ways[column])], measure.decimals(metric))
            axes.text(column, row, text, ha="center", va="center", fontsize=5.5, linespacing=0.95)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(ways)), [in_figure(_head(own, way)) for way in ways], fontsize=5.5)
    names = [in_figure(name) for name in trainings] if labelled else [""] * len(trainings)
    axes.set_yticks(range(len(trainings)), names, fontsize=6.5)


def _text(cell: "pd.Series[Any]", decimals: int) -> str:
    """The mean, and below it how far seeds are apart: nine times as wide would be the t interval of two."""
    mean, half_width, lowest, highest = (
        f"{cell[name]:.{decimals}f}" for name in ("mean", "half_width", "lowest", "highest")
    )
    if cell["n"] == 1:
        return mean
    return f"{mean}\n{lowest} to {highest}" if cell["n"] == 2 else f"{mean}\n±{half_width}"


def _head(own: pd.DataFrame, way: str) -> str:
    """A column's name, and below it what the deployment took."""
    cells = own[own["deploy"] == way]
    seconds, mebibytes = cells["deploy_s"].median(), cells["deploy_peak_mib"].max()
    lines = ["\n".join(way.split("_"))]
    if pd.notna(seconds):
        lines.append(f"{seconds:.2g} s")
    if pd.notna(mebibytes):
        lines.append(f"{mebibytes:.0f} MiB")
    return "\n".join(lines)
