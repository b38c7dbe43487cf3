"""What a sweep still needs: missing trials, trials of dead workers, chosen parameters, finals. Under one lock."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.record import RunDirectory, is_alive, read_json, write_json
from harness.search import STATIC_SAMPLERS, draw
from harness.seeding import sub_seed
from harness.study import Sweep, put_back
from harness.sweep import Cell

#: A claim whose worker has not yet said who it is counts as alive this long.
UNSIGNED_CLAIM_S = 30.0
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def top_up(sweep: Sweep) -> None:
    """Create the trials that are missing, put back those of dead workers, choose where tuning is over.

    Idempotent; any process may call it at any time.
    """
    with sweep.lock():
        reap(sweep)
        for cell in sweep.cells:
            study = sweep.studies[cell.id]
            for index in range(len(study.get_trials(deepcopy=False)), sweep.spec.tune.trials):
                study.enqueue_trial(_known_params(sweep, cell, index))
        _choose(sweep)


def _known_params(sweep: Sweep, cell: Cell, index: int) -> dict[str, Any]:
    """The parameters of trial `index`, where the sampler's draws do not depend on other trials."""
    sampler = sweep.spec.sampler.name
    if sampler not in STATIC_SAMPLERS:
        return {}
    return draw(cell.search, sampler, sub_seed(sweep.spec.tune.seed, "sampler", cell.id), index)


def reap(sweep: Sweep) -> int:
    """Put back the RUNNING trials of workers that are no more; returns how many. Hold the lock."""
    workers = live_workers(sweep)
    count = 0
    for study in (*sweep.studies.values(), sweep.finals):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not _has_worker(trial, workers):
                put_back(sweep, trial)
                count += 1
    return count


def _has_worker(trial: FrozenTrial, workers: Sequence[str]) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is not None:
        return worker in workers
    started = trial.datetime_start or datetime.now()
    return bool(workers) and time.time() - started.timestamp() < UNSIGNED_CLAIM_S


def live_workers(sweep: Sweep) -> list[str]:
    """The names of the workers that are alive."""
    statuses = {path.name: read_json(RunDirectory(path).status) for path in (sweep.folder / "workers").glob("*")}
    return [name for name, status in sorted(statuses.items()) if status and _works(status)]


def _works(status: dict[str, Any]) -> bool:
    return status["state"] == "running" and is_alive(status)


def _choose(sweep: Sweep) -> None:
    """Write cells.json anew from the studies, and enqueue the finals it names, once each."""
    queued = {
        (trial.user_attrs["cell"], trial.user_attrs["seed"], trial.user_attrs["run_id"])
        for trial in sweep.finals.get_trials(deepcopy=False)
    }
    before = read_json(sweep.folder / "cells.json") or {"cells": []}
    earlier = {cell["id"]: cell for cell in before["cells"]}
    entries = []
    for cell in sweep.cells:
        entry = _cell_entry(sweep, cell, earlier.get(cell.id))
        for seed, run_id in entry["finals"].items():
            if (cell.id, int(seed), run_id) not in queued:
                params = json.dumps(entry["chosen"]["params"])
                attributes = {"cell": cell.id, "seed": int(seed), "run_id": run_id, "params": params}
                sweep.finals.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))
        entries.append(entry)
    after = {"sweep": sweep.spec.name, "objective": list(sweep.spec.objective), "cells": entries}
    if after != before:
        write_json(sweep.folder / "cells.json", after)


def _cell_entry(sweep: Sweep, cell: Cell, earlier: dict[str, Any] | None) -> dict[str, Any]:
    trials = sweep.studies[cell.id].get_trials(deepcopy=False)
    over = len(trials) >= sweep.spec.tune.trials and all(trial.state in _FINISHED for trial in trials)
    # A sweep that grew keeps its choice until the new trials are in.
    chosen = _best(sweep, cell, trials) if over else (earlier or {}).get("chosen")
    finals = {}
    if chosen is not None:
        seeds = sweep.spec.final.seeds
        finals = {str(seed): cell.config(chosen["params"], seed, "final").run_id() for seed in seeds}
    return {
        "id": cell.id,
        "methods": [entry["name"] for entry in cell.raw["methods"]],
        "grid": dict(cell.grid),
        "set": dict(cell.set),
        "search": sorted(cell.search),
        "trials": len([trial for trial in trials if trial.state in _FINISHED]),
        "seeds": list(sweep.spec.final.seeds),
        "chosen": chosen,
        "finals": finals,
        "failed": [trial.user_attrs.get("run_id") for trial in trials if trial.state == TrialState.FAIL],
    }


def _best(sweep: Sweep, cell: Cell, trials: list[FrozenTrial]) -> dict[str, Any] | None:
    """The chosen trial: best objective, lowest number among equals; of several objectives, the Pareto front's
    best by the first. None when no trial completed."""
    if sweep.spec.tune.trials == 0:
        return {"trial": None, "params": {}, "value": None, "run_id": None}
    study = sweep.studies[cell.id]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    front = study.best_trials if len(sweep.spec.objective) > 1 else complete
    if not front:
        return None
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    best = min(front, key=lambda trial: (sign * trial.values[0], trial.number))
    value = best.values if len(best.values) > 1 else best.values[0]
    return {"trial": best.number, "params": best.params, "value": value, "run_id": best.user_attrs["run_id"]}


@dataclass
class Counts:
    """How far one phase of a sweep is."""

    total: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    pruned: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Runs that still need a worker, or have one."""
        return self.total - self.done - self.failed - self.pruned


def count(sweep: Sweep) -> dict[str, Counts]:
    """Counts of the phases "tune" and "final"; finals that cannot be named yet are part of their total."""
    tune, final = Counts(total=len(sweep.cells) * sweep.spec.tune.trials), Counts()
    for cell in sweep.cells:
        _add(tune, sweep.studies[cell.id].get_trials(deepcopy=False), cell.id)
    cells = (read_json(sweep.folder / "cells.json") or {"cells": []})["cells"]
    current = {(cell["id"], int(seed), run_id) for cell in cells for seed, run_id in cell["finals"].items()}
    trials = [
        trial
        for trial in sweep.finals.get_trials(deepcopy=False)
        if (trial.user_attrs["cell"], trial.user_attrs["seed"], trial.user_attrs["run_id"]) in current
    ]
    lost = [cell["id"] for cell in cells if cell["chosen"] is None and cell["trials"] >= sweep.spec.tune.trials]
    tune.failures += [f"{cell}: no trial completed, so there is nothing to choose from" for cell in lost]
    final.total = (len(sweep.cells) - len(lost)) * len(sweep.spec.final.seeds)
    _add(final, trials, "final")
    return {"tune": tune, "final": final}


def _add(counts: Counts, trials: Sequence[FrozenTrial], label: str) -> None:
    for trial in trials:
        counts.done += trial.state == TrialState.COMPLETE
        counts.running += trial.state == TrialState.RUNNING
        counts.pruned += trial.state == TrialState.PRUNED
        if trial.state == TrialState.FAIL:
            counts.failed += 1
            name, reason = trial.user_attrs.get("run_id", "?"), trial.user_attrs.get("reason", "unknown")
            counts.failures.append(f"{trial.user_attrs.get('cell', label)}: run {name}: {reason}")
