"""A sweep in Python: `load`, frames of everything that was measured, comparisons of two methods, figures."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import comparisons, controls, deployment, frames, measure
from analysis.disk_source import load_results, sweep_names
from analysis.grouping import make_groups
from analysis.joint import joint
from analysis.protocol import refuse_mixed_protocols
from analysis.results import SweepResults
from analysis.series import Group, Series, method_of, summarize
from harness.core.bits import FLOAT, PlainPoint
from harness.core.errors import UserError, unknown
from harness.records import schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Columns of a comparison that have to show where a frame is printed.
_FIRST = ("at", "method", "against", "difference", "low", "high", "p_holm", "better")


@dataclass(frozen=True)
class Results:
    """A sweep, or several as one. `results["oscillation@3"]` is one training (and way of deployment) of it.

    Float training, the method `none` without a target, is `results["float"]`.
    """

    sweep: SweepResults
    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        about = "; ".join(group.title for group in self.groups)
        finals, trials, pruned = (len(each) for each in (self.sweep.finals, self.sweep.trials, self.sweep.pruned))
        ended = f", {pruned} pruned" if pruned else ""
        return f"<{self.sweep.name}: {about}; {finals} finals, {trials} trials{ended}>"

    @property
    def rows(self) -> pd.DataFrame:
        """Every result row of finals and trials, one line for a run, split, way of deployment and point.

        The columns are those of rows.csv, and `point`: "4", "w4a8", "float" as in the cross-bit table.
        """
        frame = frames.rows_frame(self.sweep)
        where = frame[[name for name in ("bits", *schema.ROW_WHERE_QUANTIZED) if name in frame]]
        lines = [
            {name: value for name, value in line.items() if not pd.isna(value)} for line in where.to_dict("records")
        ]
        return frame.assign(point=[str(deployment.of_row(line)) for line in lines])

    @property
    def epochs(self) -> pd.DataFrame:
        """What the finals reported: one line for a run and epoch, one column for each number."""
        lines = []
        for final in self.sweep.finals:
            of_run = {
                "cell": final.cell.id, "run_id": final.run_id, "model": final.config["model"]["name"],
                "method": method_of(final.config), "target_bit": final.config.get("target_bit"), "seed": final.seed,
            }  # fmt: skip
            for epoch, metrics in sorted(final.epochs()[0].items()):
                numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
                lines.append({**of_run, **numbers, "epoch": epoch})
        frame = pd.DataFrame(lines)
        return frame.assign(target_bit=deployment.tidy(frame["target_bit"])) if lines else frame

    @property
    def trials(self) -> pd.DataFrame:
        """Every tuning trial that is over, also pruned ones (`state`): group, objective, validation scores, parameters.

        The columns are those of trials.csv, with `state`, `last_epoch` and `value` (there only where some were pruned).
        Scores of a pruned trial are those of its last epoch; empty where none was kept. See `frames.every_trial`.
        """
        return frames.every_trial(self.sweep, self.groups)

    @property
    def scores(self) -> pd.DataFrame:
        """Mean test score, interval and seeds of every series at every point, as in the cross-bit table."""
        found = [summarize(group).assign(group=group.title) for group in self.groups]
        return pd.concat(found, ignore_index=True)

    @property
    def names(self) -> list[str]:
        """What can be asked for by `results[name]`: labels, after `model on data: ` where there are several."""
        return [name for group in self.groups for name in self._names(group)]

    def __getitem__(self, name: str) -> Series:
        for group in self.groups:
            if name in (names := self._names(group)):
                return group.series[names.index(name)]
        raise unknown("series", name, self.names, self._meant(name), elsewhere="results.names")

    def _meant(self, name: str) -> str | None:
        """The first series of that label in any group, or whose method begins as it does, at the same target.

        Of `none`, the name of float training in sweep files, float training.
        """
        labels = {full: full.rpartition(": ")[2] for full in self.names}
        group, colon, label = name.rpartition(": ")
        if re.fullmatch(rf"{controls.METHOD}(@[^,]+)?(, .*)?", label):
            floats = [full for full, label in labels.items() if re.match(rf"{FLOAT}\b", label)]
            floats.sort(key=lambda full: not full.startswith(group + colon))
            return next(iter(floats), None)
        method, at, target = name.partition("@")
        same = [full for full, label in labels.items() if label == name]
        alike = [full for full, label in labels.items() if label.startswith(method) and label.endswith(at + target)]
        return next(iter([*same, *alike]), None)

    def _names(self, group: Group) -> list[str]:
        before = f"{group.title}: " if len(self.groups) > 1 else ""
        return [before + one.label for one in group.series]

    def compare(self, a: str, b: str, at: Any = None) -> pd.DataFrame:
        """`compare` of two of its `names`."""
        return compare(self[a], self[b], at)

    def plot(self, figure: str, group: str | None = None) -> "Figure":
        """One of the figures of `make_figures.py`, by its name. group: `model on data`, where there are several.

        Raises UserError for an unknown name, and where there is nothing to draw.
        """
        import matplotlib.pyplot as plt

        from analysis.figures import NothingToDraw, Scope
        from analysis.render import chosen_figures

        (module,) = chosen_figures([figure])
        arguments: tuple[Any, ...] = (self.groups,)
        if module.scope is Scope.GROUP:
            arguments = (self._group(group),)
        elif module.scope is Scope.THEORY:
            arguments = ()
        try:
            drawn = module.draw(*arguments)
        except NothingToDraw as reason:
            raise UserError(f"{figure}: {reason}") from None
        plt.close(drawn.figure)  # a notebook shows what a cell returns; pyplot's own list would show it twice
        return drawn.figure

    def _group(self, title: str | None) -> Group:
        titles = [group.title for group in self.groups]
        if title is None and len(titles) == 1:
            return self.groups[0]
        if title not in titles:
            raise unknown("group", str(title), titles)
        return self.groups[titles.index(title)]


def load(root: str | Path, *names: str) -> Results:
    """The sweep of this name in a root of results; `root` may be a sweep's own folder. Several names: all as one.

    Raises UserError where there is no such sweep or no finished run; for several, with what differs between their runs.
    """
    root = Path(root).expanduser()
    if not names and (root / "cells.json").is_file():
        root, names = root.resolve().parent, (root.resolve().name,)
    if names and (root / "cells.json").is_file():
        found = f"load({str(root.parent)!r}, {root.name!r}, ...)"
        raise UserError(f"{root} is one sweep; several are named below their root, {found}, and have it in common")
    if not names:
        names = tuple(sweep_names(root))
        if len(names) > 1:
            raise UserError(f"{root} holds several sweeps; name one, or some that are to be one: {', '.join(names)}")
    sweeps = [load_results(root, name) for name in dict.fromkeys(names)]
    groups = {sweep.name: make_groups(sweep) for sweep in sweeps}
    if len(sweeps) == 1:
        return Results(sweeps[0], tuple(groups[sweeps[0].name]))
    whole, reasons = joint(sweeps, groups)
    if whole is None:
        raise UserError("; ".join(reasons) or f"no model and data set is in several of {', '.join(groups)}")
    return Results(whole, tuple(make_groups(whole)))


def compare(a: Series, b: Series, at: "PlainPoint | Iterable[PlainPoint] | None" = None) -> pd.DataFrame:
    """Series `a` less series `b` in test score: one line for each point, paired by seed, p by Holm over the points.

    at: a point (4, "w4a8", "float") or several; by default all that both were tested at. Differences are in points for
    accuracies, otherwise in the metric's unit; `better` names the better one where that is decided.
    Raises UserError where runs were not made alike, or where a point was not tested.
    """
    finals = [*a.finals, *b.finals]
    refuse_mixed_protocols(f"{a.label} and {b.label}", finals, list({f.cell.id: f.cell for f in finals}.values()))
    tested = [set.intersection(*(set(found) for found in one.shown_by_seed().values())) for one in (a, b)]
    both = deployment.in_order(tested[0] & tested[1])
    wanted = both if at is None else [at] if isinstance(at, int | str) else list(at)
    for point in wanted:
        if point not in both:
            raise unknown("point", str(point), list(map(str, both)))
    metric = measure.metric_of(a.finals[0].config)
    frame = comparisons.to_frame(comparisons.between(metric, [(a, b, point) for point in wanted]), metric)
    return frame[[*_FIRST, *frame.columns.drop(list(_FIRST))]]
