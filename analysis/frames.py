"""A sweep as tidy pandas frames, for the figures and as rows.csv and trials.csv for further work."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from analysis import deployment, pruned
from analysis.measure import metric_of, shown
from analysis.results import Cell, Final, PrunedTrial, SweepResults, Trial
from analysis.series import Group, method_of
from harness.core import outside
from harness.core.bits import FLOAT, PlainPoint
from harness.records import schema
from harness.sweep import objective

#: Columns of `trials_frame` before those of the parameters; accuracies in % of the validation split, as trials were
#: chosen by them (`val_accuracies`).
TRIAL_COLUMNS = (
    "cell", "method", "target_bit", "trial", "run_id", "chosen", "at_target", "worst", "mean_of_others", "float",
)  # fmt: skip
PARAMETER = "param."
#: Those of `every_trial`.
EVERY_TRIAL_COLUMNS = (*TRIAL_COLUMNS[:6], "state", "last_epoch", "value", *TRIAL_COLUMNS[6:])


def rows_frame(sweep: SweepResults) -> pd.DataFrame:
    """Every result row of the sweep's finals and trials: one line for a run, split, way of deployment and point.

    accuracy in [0, 1], loss in nats, n images; other tasks have `metric`, `score` and figures beside it in place of
    accuracy. `trial` is that of the cell's tuning, empty for finals. bits: of the weights. Columns `activations` and
    `kv` (their bits, empty for float) are there where a row of the sweep has them.
    """
    runs: list[Final | Trial] = [*sweep.finals, *sweep.trials]
    further = [
        name for name in schema.ROW_WHERE_QUANTIZED if any(name in r for run in runs for r in run.record["rows"])
    ]
    lines = [line for run in runs for line in _rows(run, sweep.name, further)]
    frame = pd.DataFrame(lines).astype(dict.fromkeys(("trial", *further), "Int64"))
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]))


def _rows(run: Final | Trial, sweep: str, further: list[str]) -> Iterable[dict[str, Any]]:
    trial = run.number if isinstance(run, Trial) else None
    metric = metric_of(run.config)
    own = schema.ROW if "accuracy" in schema.scored(metric, 0.0) else schema.SCORED_ROW
    fields = [field for name in own for field in (name, *(further if name == "bits" else ()))]
    fields += [each.key for each in metric.beside]
    model, data = (outside.shown(run.config[section]["name"]) for section in ("model", "data"))
    shared = {
        "sweep": sweep, "cell": run.cell.id, "run_id": run.run_id, "trial": trial, "model": model,
        "data": data, "method": method_of(run.config),
        "target_bit": run.config.get("target_bit"), "seed": run.config["seed"],
    }  # fmt: skip
    for row in run.record["rows"]:
        yield {**shared, **{name: row.get(name) for name in fields}}


def trials_frame(group: Group) -> pd.DataFrame:
    """One line for each finished tuning trial of a group; see `TRIAL_COLUMNS`, then `w4`, `w4a8` and so on for each
    point, and `param.<name>` for each parameter.

    Float training has no target: `at_target` is its accuracy in float.
    """
    names = _names(group)
    lines = [_trial(trial, names) for trial in group.trials]
    frame = pd.DataFrame(lines, columns=None if lines else list(TRIAL_COLUMNS))
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]))


def _names(group: Group) -> dict[str, str]:
    """What the trials of a cell are called, by cell."""
    return {one.cell.id: one.method + one.suffix for one in group.series}


def every_trial(sweep: SweepResults, groups: Sequence[Group]) -> pd.DataFrame:
    """One line for each tuning trial that is over, by group, cell and number: `trials_frame` and its group.

    state: "complete", or "pruned" for what the pruner ended. last_epoch: the last that it trained for. value: the
    objective, the first of several, accuracy in [0, 1]; empty where neither rows nor the choice tell it. Of pruned ones
    value and scores are those of the last epoch, not of the best; empty where none was kept (W&B's copy has no pruned
    trials at all), or where epochs are not evaluated at a point.
    """
    places = {cell.id: place for place, cell in enumerate(sweep.cells)}
    lines: list[tuple[int, int, dict[str, Any]]] = []
    for place, group in enumerate(groups):
        names = _names(group)
        for trial in group.trials:
            value, epochs = _value(trial, sweep.objective[0]), trial.record.get("epochs")
            over = {"state": "complete", "last_epoch": epochs, "value": value, "group": group.title}
            lines.append((place, places[trial.cell.id], {**_trial(trial, names), **over}))
    for each in sweep.pruned:
        place, line = _pruned(each, sweep.cells[places[each.cell]], groups, sweep.objective[0])
        lines.append((place, places[each.cell], line))
    lines.sort(key=lambda line: (*line[:2], line[2]["trial"]))
    frame = pd.DataFrame([line for _, _, line in lines], columns=None if lines else [*EVERY_TRIAL_COLUMNS, "group"])
    further = [name for name in frame if name not in (*EVERY_TRIAL_COLUMNS, "group")]
    frame = frame.reindex(columns=[*EVERY_TRIAL_COLUMNS, *further, "group"])
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]), last_epoch=frame["last_epoch"].astype("Int64"))


def trials_of_sweep(sweep: SweepResults, groups: Sequence[Group]) -> pd.DataFrame:
    """trials.csv: the finished trials and their group; `every_trial` where some were pruned."""
    if sweep.pruned:
        return every_trial(sweep, groups)
    found = [trials_frame(group).assign(group=group.title) for group in groups if group.trials]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def chosen_after(group: Group) -> str:
    """A note of the deploy method that the scores of `trials_frame` are after; nothing for round-to-nearest alone."""
    names = dict.fromkeys(objective.deploy_of(trial.config) for trial in group.trials)
    told = ", ".join(outside.shown(name) for name in names if name != "rtn")
    return f"validation scores are those after {told}, by which epochs and trials were chosen" if told else ""


def pruned_frame(group: Group) -> pd.DataFrame:
    """The lines of `every_trial` that are about pruned trials of a group, without its title; empty for none."""
    runs: list[Final | Trial] = [*group.finals, *group.trials]
    cells = {run.cell.id: run.cell for run in runs}
    known = [each for each in group.pruned if each.cell in cells]  # one that shares its runs with another is not drawn
    lines = [_pruned(each, cells[each.cell], [group], group.objective[0])[1] for each in known]
    frame = pd.DataFrame(lines, columns=None if lines else list(EVERY_TRIAL_COLUMNS)).drop(
        columns="group", errors="ignore"
    )
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]))


def _value(trial: Trial, name: str) -> float | None:
    """A trial's objective, by its rows, or of the chosen one by the choice."""
    value = objective_value(trial, name)
    if value is None and trial.chosen:
        value = (trial.cell.chosen or {}).get("value")
    return value[0] if isinstance(value, list) else value


def _pruned(trial: PrunedTrial, cell: Cell, groups: Sequence[Group], name: str) -> tuple[int, dict[str, Any]]:
    """The line of a pruned trial, and the place of its group: after all where no run of its cell says which."""
    runs: list[tuple[int, Final | Trial]] = []
    for place, group in enumerate(groups):
        runs += [(place, final) for one in group.series for final in one.finals]
        runs += [(place, finished) for finished in group.trials]
    nowhere = 0 if len(groups) == 1 else len(groups)
    place, run = next(((place, run) for place, run in runs if run.cell.id == cell.id), (nowhere, None))
    of_cell = groups[place] if place < len(groups) else None
    target = trial.params.get("target_bit", (run.config if run else cell.grid).get("target_bit"))
    reported = pruned.last(trial, name)
    own = method_of({"methods": [{"name": name} for name in cell.methods], "target_bit": target})
    return place, {
        "cell": cell.id,
        "method": _names(of_cell).get(cell.id, own) if of_cell else own,
        "target_bit": target,
        "trial": trial.number,
        "run_id": trial.run_id,
        "chosen": False,
        "state": "pruned",
        "last_epoch": reported.epoch,
        "value": reported.value,
        "group": of_cell.title if of_cell else None,
        **_scores(reported.scores, target, trial.config, reported.complete),
        **{PARAMETER + name: value for name, value in trial.params.items()},
    }


def _trial(trial: Trial, names: Mapping[str, str]) -> dict[str, Any]:
    accuracies = val_accuracies(trial)
    target = trial.config.get("target_bit")
    return {
        "cell": trial.cell.id,
        "method": names.get(trial.cell.id) or method_of(trial.config),
        "target_bit": target,
        "trial": trial.number,
        "run_id": trial.run_id,
        "chosen": trial.chosen,
        **_scores(accuracies, target, trial.config),
        **{PARAMETER + name: value for name, value in trial.params.items()},
    }


def _scores(
    accuracies: Mapping[PlainPoint, float], target: PlainPoint | None, config: Mapping[str, Any], complete: bool = True
) -> dict[str, Any]:
    """The scores of a line, from those by point. complete: whether all points are there, else there are no means."""
    quantized = {point: value for point, value in accuracies.items() if point != FLOAT}
    others = [accuracies[point] for point in deployment.others(accuracies, target)]
    return {
        "at_target": accuracies.get(target or FLOAT),
        "worst": metric_of(config).worst(quantized.values()) if quantized and complete else None,
        "mean_of_others": fmean(others) if others and complete else None,
        "float": accuracies.get(FLOAT),
        **{deployment.key(point): value for point, value in quantized.items()},
    }


def objective_value(trial: Trial, name: str) -> float | None:
    """What the tuning optimised, computed from the record as the study did; accuracy in [0, 1], loss in nats.

    None where rows do not tell it: of metrics that runs report beside them.
    """
    rows = trial.rows("val")
    points = [schema.point(row) for row in rows if not schema.point(row).is_float]
    metric = metric_of(trial.config)
    metrics = schema.as_metrics(rows, metric, objective.deploy_of(trial.config))
    if name not in (*objective.AGGREGATES, *metrics):
        return None
    return objective.value(name, metrics, points, trial.config.get("target_bit") or FLOAT, metric)


def val_accuracies(run: Trial) -> dict[PlainPoint, float]:
    """Validation score at each point, accuracy in %, as trials were chosen by it: after `monitor.deploy`, where a run
    has that; else under the first way of deployment."""
    rows, deploy = run.rows("val"), objective.deploy_of(run.config)
    counted = [row for row in rows if row["deploy"] == deploy] or rows
    first = [row for row in counted if (row["deploy"], row["scale"]) == (counted[0]["deploy"], counted[0]["scale"])]
    return {deployment.of_row(row): shown(metric_of(run.config), schema.score_of(row)) for row in first}
