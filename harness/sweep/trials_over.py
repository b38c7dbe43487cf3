"""The tuning trials of a sweep that are over, as its run directories tell, without its queue."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError
from harness.records import schema
from harness.records.files import read_json
from harness.records.run_directory import RunDirectory
from harness.sweep import objective
from harness.sweep.cells import of_epoch
from harness.sweep.queue import OpenSweep, values_of
from harness.training.config import RunConfig, complete


@dataclass(frozen=True)
class TrialOver:
    """A trial that finished or was pruned.

    values: its objectives; None: it was pruned. epochs: what the pruner was told, by epoch; empty without a pruner.
    """

    number: int
    params: Mapping[str, Any]
    run_id: str
    values: list[float] | None
    epochs: Mapping[int, float]


def trials_over(sweep: OpenSweep) -> dict[str, list[TrialOver]]:
    """The trials that are over, by cell, in the order of their numbers.

    A trial that was repeated shares the run of the one that had failed. Of trials that share a run, all count as
    finished where one did: the run has a record, which they would find.
    """
    cells = {cell.id: cell for cell in sweep.cells}
    found: dict[str, list[TrialOver]] = {cell: [] for cell in cells}
    for run in map(RunDirectory, sweep.files.runs_named()):
        entries = [
            entry
            for entry in read_json(run.trials) or []
            if entry["phase"] == "tune"
            and (cell := cells.get(entry["cell"]))
            and set(entry["params"]) == set(cell.search)
        ]
        result = _result(sweep, run) if entries else None
        if result is not None:
            for entry in entries:
                found[entry["cell"]].append(TrialOver(entry["trial"], entry["params"], run.path.name, *result))
    return {cell: sorted(trials, key=lambda trial: trial.number) for cell, trials in found.items()}


def _result(sweep: OpenSweep, run: RunDirectory) -> tuple[list[float] | None, Mapping[int, float]] | None:
    """A run's objectives, None where it was pruned, and those of its epochs; None for a run that is not over."""
    record = read_json(run.record)
    if record is not None:
        try:
            config = complete(record["config"])
            return values_of(sweep, config, record["run_id"], record), _epochs(sweep, run, config)
        except UserError:  # the trial failed, and is drawn again
            return None
    if (read_json(run.status) or {}).get("state") != "pruned":
        return None
    try:  # archives of earlier versions keep no configuration of a pruned run
        written = read_json(run.config)
        return None, _epochs(sweep, run, complete(written["config"])) if written else {}
    except UserError:
        return None, {}


def _epochs(sweep: OpenSweep, run: RunDirectory, config: RunConfig) -> dict[int, float]:
    """The objective after each epoch. What is not in its line was not finite, and was told as it was: not a number."""
    if sweep.spec.pruner.name == "none":
        return {}
    lacking = dict.fromkeys(of_epoch(config), math.nan)
    found = {}
    for line in run.read_metrics():
        try:
            value = objective.epoch_value(sweep.spec.objective[0], {**lacking, **line}, config)
        except UserError:
            value = math.nan
        found[line[schema.EPOCH]] = value
    return found
