"""What a sweep still needs: missing trials, trials of dead workers, chosen parameters, finals. Under one lock."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.core.outside import shown
from harness.core.wording import counted
from harness.records.files import read_json, write_json
from harness.sweep.cells import Cell
from harness.sweep.queue import OpenSweep, put_back
from harness.sweep.rebuild import rebuild
from harness.sweep.samplers import known_params
from harness.sweep.trials import Counts, best_trial, current

#: A claim that does not yet name its worker counts as alive this long: a moment, but clocks may differ.
UNSIGNED_CLAIM_S = 300.0
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def top_up(sweep: OpenSweep) -> None:
    """Create missing trials, put back those of dead workers, choose parameters where tuning is over.

    Idempotent; any process may call it at any time. Choosing imports torch.
    """
    with sweep.files.lock("plan"):
        if rebuild(sweep):
            print(f"{sweep.folder}: the queue was gone; its finished trials are rebuilt from the records", flush=True)
        reap(sweep)
        for cell in sweep.cells:
            study = sweep.studies[cell.id]
            for index in range(len(current(study.get_trials(deepcopy=False))), sweep.spec.tune.trials):
                study.enqueue_trial(known_params(sweep.spec, cell, index) or {})
        _choose(sweep)


def is_tuned(sweep: OpenSweep, cell: Cell) -> bool:
    """Whether nothing of a cell's tuning is left to run, so that `top_up` has something to choose."""
    trials = sweep.studies[cell.id].get_trials(deepcopy=False)
    return all(trial.state in _FINISHED for trial in trials)


def reap(sweep: OpenSweep, of: str | None = None) -> int:
    """Put back the RUNNING trials of workers that ended; returns how many. Hold the lock.

    of: a worker that has just started: what it held before it was requeued is put back.
    """
    workers = [] if of else sweep.files.living_workers()
    count = 0
    for study in sweep.all_studies():
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get("worker") == of if of else not _has_worker(trial, workers):
                _lose(sweep, trial)
                count += 1
    return count


def _lose(sweep: OpenSweep, trial: FrozenTrial) -> None:
    """Put back the trial of a dead worker, or fail it once too many workers have died during it."""
    lost = trial.user_attrs.get("lost", 0) + 1
    sweep.storage.set_trial_user_attr(trial._trial_id, "lost", lost)
    if lost <= sweep.spec.max_lost:
        put_back(sweep, trial)
        return
    worker = trial.user_attrs.get("worker")
    reason = f"{counted(lost, 'worker')} died during this run (killed, out of memory, node lost); the last was {worker}"
    sweep.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    sweep.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _has_worker(trial: FrozenTrial, workers: Sequence[str]) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is not None:
        return worker in workers
    started = trial.datetime_start or datetime.now()
    return bool(workers) and time.time() - started.timestamp() < UNSIGNED_CLAIM_S


def _choose(sweep: OpenSweep) -> None:
    """Write cells.json from the studies, and enqueue the finals it names, once each."""
    queued = {_final_key(trial) for trial in sweep.finals.get_trials(deepcopy=False)}
    earlier = {cell["id"]: cell for cell in sweep.files.cell_entries()}
    entries = []
    for cell in sweep.cells:
        entry = _cell_entry(sweep, cell, earlier.get(cell.id))
        for seed, run_id in entry["finals"].items():
            if (cell.id, int(seed), run_id) not in queued:
                params = json.dumps(entry["chosen"]["params"])
                attributes = {"cell": cell.id, "seed": int(seed), "run_id": run_id, "params": params}
                sweep.finals.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))
        entries.append(entry)
    after = {"sweep": sweep.spec.name, "objective": sweep.spec.objectives, "cells": entries}
    if after != read_json(sweep.files.cells):
        write_json(sweep.files.cells, after)


def _cell_entry(sweep: OpenSweep, cell: Cell, earlier: dict[str, Any] | None) -> dict[str, Any]:
    trials = current(sweep.studies[cell.id].get_trials(deepcopy=False))
    over = len(trials) >= sweep.spec.tune.trials and all(trial.state in _FINISHED for trial in trials)
    news = {
        "trials": sum(trial.state in _FINISHED for trial in trials),
        "seeds": list(sweep.spec.final.seeds),
        "failed": [trial.user_attrs.get("run_id") for trial in trials if trial.state == TrialState.FAIL],
    }
    settled = earlier is not None and (earlier["chosen"] is not None or not over)
    if earlier is not None and settled and all(earlier[key] == value for key, value in news.items()):
        return earlier  # naming finals takes milliseconds per run
    # A sweep that grew keeps its choice until the new trials are in.
    chosen = _chosen(sweep, cell, trials) if over else (earlier or {}).get("chosen")
    finals = {} if over or earlier is None else earlier["finals"]  # new seeds wait for the new choice
    if over and chosen is not None:
        seeds = sweep.spec.final.seeds
        finals = {str(seed): cell.config(chosen["params"], seed, "final").run_id() for seed in seeds}
    return {
        "id": cell.id,
        "methods": [shown(entry["name"]) for entry in cell.raw["methods"]],
        "grid": dict(cell.grid),
        "set": dict(cell.set),
        "search": sorted(cell.search),
        "chosen": chosen,
        "finals": finals,
        **news,
    }


def _chosen(sweep: OpenSweep, cell: Cell, trials: list[FrozenTrial]) -> dict[str, Any] | None:
    """The parameters for the finals: those of the best trial. None when no trial completed."""
    if sweep.spec.tune.trials == 0:
        return {"trial": None, "params": {}, "value": None, "run_id": None}
    best = best_trial(sweep, cell.id, trials)
    if best is None:
        return None
    value = best.values if len(best.values) > 1 else best.values[0]
    return {"trial": best.number, "params": best.params, "value": value, "run_id": best.user_attrs.get("run_id")}


def count(sweep: OpenSweep) -> dict[str, Counts]:
    """Counts of the phases "tune" and "final"; finals that cannot be named yet are part of their total."""
    tune, final = Counts(total=len(sweep.cells) * sweep.spec.tune.trials), Counts()
    for cell in sweep.cells:
        tune.add(current(sweep.studies[cell.id].get_trials(deepcopy=False)), cell.id)
    cells = sweep.files.cell_entries()
    lost = [cell["id"] for cell in cells if is_lost(sweep, cell)]
    tune.failures += [f"{cell}: no trial completed, so there is nothing to choose from" for cell in lost]
    final.total = (len(sweep.cells) - len(lost)) * len(sweep.spec.final.seeds)
    final.add(current_finals(sweep, cells), "final")
    return {"tune": tune, "final": final}


def left(sweep: OpenSweep) -> int:
    """Runs that still need a worker, or have one, in both phases."""
    return sum(phase.left for phase in count(sweep).values())


def left_by_cell(sweep: OpenSweep) -> dict[str, tuple[int, int]]:
    """By a cell's id its trials and its finals that still need a worker, or have one."""
    entries = {entry["id"]: entry for entry in sweep.files.cell_entries()}
    finals, found = current_finals(sweep, list(entries.values())), {}
    for cell in sweep.cells:
        seeds = len(sweep.spec.final.seeds)
        lost = cell.id in entries and is_lost(sweep, entries[cell.id])
        tune, final = Counts(total=sweep.spec.tune.trials), Counts(total=0 if lost else seeds)
        tune.add(current(sweep.studies[cell.id].get_trials(deepcopy=False)), cell.id)
        final.add((trial for trial in finals if trial.user_attrs["cell"] == cell.id), "final")
        found[cell.id] = tune.left, final.left
    return found


def ending(sweep: OpenSweep) -> str:
    """What a sweep of which nothing is left to run is called: complete, unless a final run is missing."""
    counts = count(sweep)
    failed, lost = counts["final"].failed, sum(is_lost(sweep, cell) for cell in sweep.files.cell_entries())
    parts = [f"{counted(failed, 'final run')} failed"] if failed else []
    parts += [f"{lost} cell{'s have' if lost > 1 else ' has'} no finished trial"] if lost else []
    return f"not complete: {', '.join(parts)}; harness.retry repeats them" if parts else "complete, nothing to do"


def is_lost(sweep: OpenSweep, entry: Mapping[str, Any]) -> bool:
    """Whether a cell was tuned and nothing completed: it will have no finals."""
    return entry["chosen"] is None and entry["trials"] >= sweep.spec.tune.trials


def current_finals(sweep: OpenSweep, cells: Sequence[Mapping[str, Any]]) -> list[FrozenTrial]:
    """The final trials that cells.json names; a choice may have changed after the sweep grew."""
    named = {(cell["id"], int(seed), run_id) for cell in cells for seed, run_id in cell["finals"].items()}
    return [trial for trial in current(sweep.finals.get_trials(deepcopy=False)) if _final_key(trial) in named]


def _final_key(trial: FrozenTrial) -> tuple[str, int, str]:
    return trial.user_attrs["cell"], trial.user_attrs["seed"], trial.user_attrs["run_id"]
