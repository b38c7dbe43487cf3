"""Read a sweep from W&B instead of from disk: every run's mirror holds its record and says what cell it is of.

What W&B does not know: a run that several cells share counts for the cell that carried it out alone, and the seeds
that a sweep promises are taken to be those that any of its cells has.
"""

import json
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from analysis.records import problem_of
from analysis.results import Cell, Epochs, Failure, Final, Missing, SweepResults, Trial, refuse_nothing
from harness.core import outside
from harness.core.dotted import flatten
from harness.core.errors import UserError
from harness.records.schema import EPOCH, RECORD
from harness.records.wandb_names import tag_of

#: More epochs than any run has: W&B thins out a history that is longer.
_EVERY_EPOCH = 100_000
_GONE = ("failed", "crashed")


def load_results(entity: str | None, project: str, name: str) -> SweepResults:
    """The sweep as W&B has it. Raises UserError without a key, without an answer, and where there is no such sweep."""
    try:
        runs = _runs(entity, project, name)
    except ImportError as error:
        raise UserError("--source wandb needs the package wandb (pip install wandb)") from error
    except Exception as error:  # wandb raises what its transport, its schema and its server raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if type(error).__name__ == "UsageError":
            said = "no W&B key was found: `wandb login` stores one, or set WANDB_API_KEY"
        raise UserError(f"--source wandb: {said}") from error
    if not runs:
        raise UserError(
            f"--source wandb: project {project!r} holds no run of a sweep {name!r}; see --project, --entity"
        )
    sweep = SweepResults(name, [])
    finished = [found for run in runs if (found := _finished(run, sweep)) is not None]
    by_cell: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for run, record in sorted(finished, key=lambda pair: (pair[1]["phase"] == "final", pair[0].created_at, pair[0].id)):
        by_cell.setdefault(record["labels"]["cell"], []).append((run, record))
    seeds = tuple(sorted({record["config"]["seed"] for _, record in finished if record["phase"] == "final"}))
    for cell_id in sorted(by_cell):
        _add_cell(sweep, cell_id, by_cell[cell_id], seeds)
    refuse_nothing(sweep)
    return sweep


def _runs(entity: str | None, project: str, name: str) -> list[Any]:
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # else it asks for a key where there is a terminal
    path = f"{entity}/{project}" if entity else project
    tag = tag_of(name)
    found = wandb.Api().runs(path, filters={"tags": {"$in": [tag]}}, order="+created_at", lazy=False)
    return [run for run in found if tag in run.tags]  # list() would hide a TypeError within, and be empty


def _finished(run: Any, sweep: SweepResults) -> tuple[Any, dict[str, Any]] | None:
    """A run and its record; None for one that has none, which is noted where it will never have one."""
    text = run.summary_metrics.get(RECORD)
    if text is None:
        if run.state in _GONE:
            sweep.failures.append(Failure(run.id, (str(run.config.get("cell")),), f"W&B calls it {run.state}"))
        return None
    try:
        record = json.loads(text)
        record["config"] = dict(run.config)
        problem = problem_of(record, run.id, record["phase"]) or ("" if record["labels"].get("cell") else "no cell")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"unreadable ({type(error).__name__}: {error})"
    if problem:
        sweep.corrupt.append(f"{run.id} on W&B: {problem}")
        return None
    return run, record


def _add_cell(
    sweep: SweepResults, cell_id: str, found: list[tuple[Any, dict[str, Any]]], seeds: tuple[int, ...]
) -> None:
    """A cell's finals, by the parameters of the last one begun (earlier choices are superseded), and its trials."""
    finals = [(run, record) for run, record in found if record["phase"] == "final"]
    labels = found[-1][1]["labels"]
    sweep.objective = tuple(labels.get("objective") or sweep.objective)
    current = {record["config"]["seed"]: (run, record) for run, record in finals if _params(record) == labels["params"]}
    if len(finals) > len(current):
        sweep.notes.append(f"{cell_id}: {len(finals) - len(current)} finals of an earlier choice left out")
    tuned = [(run, record) for run, record in found if record["phase"] == "tune"]
    chosen = next((record["labels"] for _, record in tuned if finals and _params(record) == labels["params"]), None)
    cell = Cell(
        cell_id, tuple(outside.shown(method["name"]) for method in found[-1][1]["config"]["methods"]),
        dict(flatten(labels["grid"])),
        seeds, chosen and {"trial": chosen["trial"], "params": chosen["params"]},
        {seed: run.id for seed, (run, _) in current.items()}, (),
    )  # fmt: skip
    sweep.cells.append(cell)
    for seed in seeds:
        if seed in current:
            run, record = current[seed]
            sweep.finals.append(Final(cell, seed, run.id, record, partial(_history, run)))
        else:
            sweep.missing.append(Missing(cell_id, seed, "not finished, or not synced"))
    for run, record in sorted(tuned, key=lambda pair: pair[1]["labels"]["trial"]):
        sweep.trials.append(Trial(cell, record["labels"]["trial"], run.id, _params(record), record))


def _params(record: dict[str, Any]) -> dict[str, Any]:
    return dict(record["labels"].get("params") or {})


def _history(run: Any) -> Epochs:
    """Epoch -> metrics, as metrics.jsonl has them but for histograms."""
    rows: Iterable[dict[str, Any]] = run.history(samples=_EVERY_EPOCH, pandas=False)
    by_epoch = {int(row[EPOCH]): row for row in rows if row.get(EPOCH) is not None}
    # W&B keeps no order of keys; layers are put in the network's, as far as their names tell it.
    return {epoch: dict(sorted(by_epoch[epoch].items(), key=_natural)) for epoch in sorted(by_epoch)}, []


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Orders layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", item[0])]
