"""A sweep as tidy pandas frames, for the figures and as rows.csv and trials.csv for further work."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.results import Final, SweepResults, Trial
from analysis.series import Group, method_of
from harness.core.bits import FLOAT
from harness.records import schema
from harness.sweep import objective

#: Columns of `trials_frame` before those of the parameters; accuracies in % of the validation split.
TRIAL_COLUMNS = (
    "cell", "method", "target_bit", "trial", "run_id", "chosen", "at_target", "worst", "mean_of_others", "float",
)  # fmt: skip
PARAMETER = "param."


def rows_frame(sweep: SweepResults) -> pd.DataFrame:
    """Every result row of the sweep's finals and trials: one line for a run, split, way of deployment and bit-width.

    accuracy in [0, 1], loss in nats, n images; `trial` is that of the cell's tuning, empty for finals.
    """
    lines: list[dict[str, Any]] = []
    for final in sweep.finals:
        lines += _rows(final, sweep.name, None)
    for trial in sweep.trials:
        lines += _rows(trial, sweep.name, trial.number)
    frame = pd.DataFrame(lines)
    return frame.astype({"target_bit": "Int64", "trial": "Int64"})


def _rows(run: Final | Trial, sweep: str, trial: int | None) -> Iterable[dict[str, Any]]:
    shared = {
        "sweep": sweep, "cell": run.cell.id, "run_id": run.run_id, "trial": trial, "model": run.config["model"]["name"],
        "data": run.config["data"]["name"], "method": method_of(run.config),
        "target_bit": run.config.get("target_bit"), "seed": run.config["seed"],
    }  # fmt: skip
    for row in run.record["rows"]:
        yield {**shared, **{name: row[name] for name in schema.ROW}}


def trials_frame(group: Group) -> pd.DataFrame:
    """One line for each finished tuning trial of a group; see `TRIAL_COLUMNS`, then `param.<name>` for each parameter.

    Float training has no target: `at_target` is its accuracy in float.
    """
    names = {one.cell.id: one.method + one.suffix for one in group.series}
    lines = [_trial(trial, names) for trial in group.trials]
    frame = pd.DataFrame(lines, columns=None if lines else list(TRIAL_COLUMNS))
    return frame.astype({"target_bit": "Int64"})


def _trial(trial: Trial, names: Mapping[str, str]) -> dict[str, Any]:
    accuracies = val_accuracies(trial)
    target = trial.config.get("target_bit")
    widths = {bits: value for bits, value in accuracies.items() if bits != FLOAT}
    others = [value for bits, value in widths.items() if bits != target]
    return {
        "cell": trial.cell.id,
        "method": names.get(trial.cell.id) or method_of(trial.config),
        "target_bit": target,
        "trial": trial.number,
        "run_id": trial.run_id,
        "chosen": trial.chosen,
        "at_target": accuracies.get(target or FLOAT),
        "worst": min(widths.values(), default=None),
        "mean_of_others": fmean(others) if others else None,
        "float": accuracies.get(FLOAT),
        **{f"w{bits}": value for bits, value in widths.items()},
        **{PARAMETER + name: value for name, value in trial.params.items()},
    }


def objective_value(trial: Trial, name: str) -> float:
    """What the tuning optimised, computed from the record as the study did; accuracy in [0, 1], loss in nats."""
    rows = trial.rows("val")
    points = [schema.point(row) for row in rows if not schema.point(row).is_float]
    metrics = schema.as_metrics(rows, objective.deploy_of(trial.config))
    return objective.value(name, metrics, points, trial.config.get("target_bit") or FLOAT)


def val_accuracies(run: Trial) -> dict[int | str, float]:
    """Validation accuracy in % at each bit-width, under the first way of deployment."""
    rows = run.rows("val")
    first = [row for row in rows if (row["deploy"], row["scale"]) == (rows[0]["deploy"], rows[0]["scale"])]
    return {row["bits"]: 100 * row["accuracy"] for row in first}
