"""A sweep as tidy pandas frames, for the figures and as rows.csv and trials.csv for further work."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from analysis import deployment
from analysis.measure import metric_of, shown
from analysis.results import Final, SweepResults, Trial
from analysis.series import Group, method_of
from harness.core import outside
from harness.core.bits import FLOAT, PlainPoint
from harness.records import schema
from harness.sweep import objective

#: Columns of `trials_frame` before those of the parameters; accuracies in % of the validation split.
TRIAL_COLUMNS = (
    "cell", "method", "target_bit", "trial", "run_id", "chosen", "at_target", "worst", "mean_of_others", "float",
)  # fmt: skip
PARAMETER = "param."


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
    names = {one.cell.id: one.method + one.suffix for one in group.series}
    lines = [_trial(trial, names) for trial in group.trials]
    frame = pd.DataFrame(lines, columns=None if lines else list(TRIAL_COLUMNS))
    return frame.assign(target_bit=deployment.tidy(frame["target_bit"]))


def _trial(trial: Trial, names: Mapping[str, str]) -> dict[str, Any]:
    accuracies = val_accuracies(trial)
    target = trial.config.get("target_bit")
    quantized = {point: value for point, value in accuracies.items() if point != FLOAT}
    others = [accuracies[point] for point in deployment.others(accuracies, target)]
    return {
        "cell": trial.cell.id,
        "method": names.get(trial.cell.id) or method_of(trial.config),
        "target_bit": target,
        "trial": trial.number,
        "run_id": trial.run_id,
        "chosen": trial.chosen,
        "at_target": accuracies.get(target or FLOAT),
        "worst": metric_of(trial.config).worst(quantized.values()) if quantized else None,
        "mean_of_others": fmean(others) if others else None,
        "float": accuracies.get(FLOAT),
        **{deployment.key(point): value for point, value in quantized.items()},
        **{PARAMETER + name: value for name, value in trial.params.items()},
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
    """Validation score at each point, accuracy in %, under the first way of deployment."""
    rows = run.rows("val")
    first = [row for row in rows if (row["deploy"], row["scale"]) == (rows[0]["deploy"], rows[0]["scale"])]
    return {deployment.of_row(row): shown(metric_of(run.config), schema.score_of(row)) for row in first}
