"""The status of a sweep: its cells, workers and failures, as plain values. Reads the queue, not the runs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from harness.cluster.worker_info import WorkerInfo, list_workers, since_last_launch
from harness.sweep import objective, plan
from harness.sweep.cells import Cell
from harness.sweep.queue import NO_MIRROR, OpenSweep
from harness.sweep.rebuild import RecordedSweep, as_it_is
from harness.sweep.trials import Counts, best_trial, current, failed, mean_seconds, without_first_ones

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: The trials of a cell that count, by phase: "tune" and "final".
Phases = Mapping[str, "list[FrozenTrial]"]
_COUNTS = ("total", "waiting", "running", "done", "failed", "pruned")


def status_report(sweep: OpenSweep) -> dict[str, Any]:
    """What `harness.status --json` prints. Puts back the trials of dead workers first, unless another process plans.

    Where the queue is gone, the records are counted, and no queue is written.
    """
    sweep = as_it_is(sweep)
    # Another process may hold the lock, and only reads may be allowed here.
    with suppress(Timeout, OSError), sweep.files.lock("plan").acquire(timeout=1):
        plan.reap(sweep)
    workers = list_workers(sweep.folder)
    present, recent = sum(worker.present for worker in workers), since_last_launch(workers)
    entries = sweep.files.cell_entries()
    lost = {entry["id"] for entry in entries if plan.is_lost(sweep, entry)}
    trials = _trials(sweep, entries)
    means_s = _means_s(trials)
    cells = [_cell(sweep, cell, trials[cell.id], cell.id in lost, means_s[cell.id], present) for cell in sweep.cells]
    left = sum(cell["waiting"] + cell["running"] for cell in cells)
    return {
        "sweep": sweep.spec.name,
        "folder": str(sweep.folder),
        "state": _overall(sweep, left, workers, cells),
        "objective": sweep.spec.objectives,
        "storage": sweep.spec.storage,
        "queue_is_there": not isinstance(sweep, RecordedSweep),
        "runs": sum(cell["total"] for cell in cells),
        "left": left,
        "eta_s": _sum([cell["eta_s"] for cell in cells]),
        "cells": cells,
        "workers": [_worker(worker) | {"since_last_launch": worker.name in recent} for worker in workers],
        "without_mirror": _without_mirror(trials),
        "failures": _failures(sweep, trials, {worker.name: worker for worker in workers}),
    }


def time_left_s(sweep: OpenSweep, workers: int) -> float | None:
    """Seconds until the sweep is complete with so many workers; None where no run says how long one takes."""
    entries = sweep.files.cell_entries()
    lost = {entry["id"] for entry in entries if plan.is_lost(sweep, entry)}
    trials = _trials(sweep, entries)
    means_s = _means_s(trials)
    counted = {cell: _counts(sweep, cell, phases, cell in lost) for cell, phases in trials.items()}
    return _sum([_eta_s(*counted[cell], means_s[cell], workers) for cell in trials])


def _sum(etas: Sequence[float | None]) -> float | None:
    return None if None in etas else sum(each for each in etas if each is not None)


def _means_s(trials: Mapping[str, Phases]) -> dict[str, float | None]:
    """The mean time of a run of each cell, in seconds; that of any cell's where it has none of its own."""
    each = [(cell, trial) for cell, phases in trials.items() for found in phases.values() for trial in found]
    later = {id(trial) for trial in without_first_ones(trial for _, trial in each)}
    overall_s = mean_seconds([trial for _, trial in each if id(trial) in later])
    own = {cell: [trial for place, trial in each if place == cell and id(trial) in later] for cell in trials}
    return {cell: mean_seconds(found) or overall_s for cell, found in own.items()}


def _trials(sweep: OpenSweep, entries: Sequence[Mapping[str, Any]]) -> dict[str, Phases]:
    found: dict[str, Phases] = {
        cell.id: {"tune": current(sweep.studies[cell.id].get_trials(deepcopy=False)), "final": []}
        for cell in sweep.cells
    }
    for trial in plan.current_finals(sweep, entries):
        found[trial.user_attrs["cell"]]["final"].append(trial)
    return found


def _without_mirror(trials: Mapping[str, Phases]) -> dict[str, str]:
    """Why there is no whole copy on W&B, by run."""
    each = [trial.user_attrs for phases in trials.values() for found in phases.values() for trial in found]
    return {noted.get("run_id", "?"): noted[NO_MIRROR] for noted in each if NO_MIRROR in noted}


def _overall(sweep: OpenSweep, left: int, workers: Sequence[WorkerInfo], cells: Sequence[dict[str, Any]]) -> str:
    if not left:
        return "failed" if any(cell["finals_failed"] or cell["nothing_to_choose"] for cell in cells) else "complete"
    states = {worker.state for worker in workers}
    for state in ("running", "pending"):
        if state in states:
            return state
    return "cancelled" if sweep.files.stop.exists() else "stopped"


def _counts(sweep: OpenSweep, cell: str, trials: Phases, lost: bool) -> tuple[Counts, Counts]:
    """Of a cell's trials and finals. lost: whether there is nothing to choose finals from."""
    tune = Counts(total=sweep.spec.tune.trials)
    final = Counts(total=0 if lost else len(sweep.spec.final.seeds))
    tune.add(trials["tune"], cell)
    final.add(trials["final"], cell)
    return tune, final


def _eta_s(tune: Counts, final: Counts, mean_s: float | None, workers: int) -> float | None:
    """Seconds until a cell is complete whose runs take `mean_s`."""
    left = tune.left + final.left
    is_known = left == 0 or (mean_s is not None and workers > 0)
    return left * (mean_s or 0.0) / max(workers, 1) if is_known else None


def _best(sweep: OpenSweep, best: "FrozenTrial") -> dict[str, Any]:
    shown = objective.shown(best.values, sweep.spec.objectives, sweep.spec.metric)
    return {"trial": best.number, "values": best.values, "shown": shown, "params": best.params}


def _cell(
    sweep: OpenSweep, cell: Cell, trials: Phases, lost: bool, mean_s: float | None, present: int
) -> dict[str, Any]:
    """mean_s: of a run. present: workers."""
    tune, final = _counts(sweep, cell.id, trials, lost)
    best = best_trial(sweep, cell.id, trials["tune"])
    return {
        "id": cell.id,
        **{key: getattr(tune, key) + getattr(final, key) for key in _COUNTS},
        "trials_done": tune.total - tune.left,
        "trials": tune.total,
        "finals_done": final.total - final.left,
        "finals": final.total,
        "finals_failed": final.failed,
        "nothing_to_choose": lost,
        "measured_after": cell.measured_after,
        "best": None if best is None else _best(sweep, best),
        "mean_run_s": mean_s,
        "eta_s": _eta_s(tune, final, mean_s, present),
    }


def _worker(worker: WorkerInfo) -> dict[str, Any]:
    keys = (
        *("pid", "slot", "gpu", "threads", "run", "cell", "epoch", "epochs", "epoch_s"),
        *("attempt", "finished", "reason", "code", "launched_with"),
    )
    age = worker.status.get("age_s")
    return {
        "name": worker.name,
        "state": worker.state,
        "why": worker.why,
        "cluster": worker.cluster,
        "job_id": worker.job_id,
        "host": worker.host,
        **{key: worker.status.get(key) for key in keys},
        "heartbeat_age_s": None if age is None else round(age, 1),
        "log": worker.log,
        "last_line": " ".join(worker.last_lines()) or None if worker.state in ("lost", "failed") else None,
    }


def _failures(
    sweep: OpenSweep, trials: Mapping[str, Phases], workers: Mapping[str, WorkerInfo]
) -> list[dict[str, Any]]:
    return [
        {
            "run": (run_id := trial.user_attrs.get("run_id")),
            "cell": cell,
            "phase": phase,
            "trial": trial.number,
            "reason": trial.user_attrs.get("reason", "unknown"),
            "log": _log(sweep, run_id, workers.get(trial.user_attrs.get("worker", ""))),
        }
        for phase in ("tune", "final")
        for cell, phases in trials.items()
        for trial in failed(phases[phase])
    ]


def _log(sweep: OpenSweep, run_id: str | None, worker: WorkerInfo | None) -> str | None:
    """The run's log, or its worker's for a run that wrote none."""
    if run_id and (path := sweep.files.run(run_id).log).exists():
        return str(path)
    return worker.log if worker else None
