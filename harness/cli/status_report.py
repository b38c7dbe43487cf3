"""How a sweep stands: its cells, workers and failures, as plain values. Reads the queue, not the runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import Timeout
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.cluster.workers import WorkerInfo, list_workers
from harness.records.run_log import LOG
from harness.records.sweep_directory import STOP
from harness.sweep import plan
from harness.sweep.cells import Cell
from harness.sweep.plan import Counts
from harness.sweep.queue import FINALS, OpenSweep, current


def standing(sweep: OpenSweep) -> dict[str, Any]:
    """What `harness.status --json` prints. Puts back the trials of dead workers first, if nobody else is at it."""
    _reap(sweep)
    members = list_workers(sweep.folder)
    present = sum(member.present for member in members)
    entries = {entry["id"]: entry for entry in plan.chosen_cells(sweep)}
    finals: dict[str, list[FrozenTrial]] = {cell.id: [] for cell in sweep.cells}
    for trial in plan.current_finals(sweep, list(entries.values())):
        finals[trial.user_attrs["cell"]].append(trial)
    tuning = {cell.id: current(sweep.studies[cell.id].get_trials(deepcopy=False)) for cell in sweep.cells}
    overall = _mean_s([trial for trials in (*tuning.values(), *finals.values()) for trial in trials])
    cells = []
    for cell in sweep.cells:
        entry = entries.get(cell.id)
        lost = entry is not None and plan.is_lost(sweep, entry)
        cells.append(_cell(sweep, cell, tuning[cell.id], finals[cell.id], lost, overall, present))
    left = sum(cell["waiting"] + cell["running"] for cell in cells)
    etas = [cell["eta_s"] for cell in cells]
    return {
        "sweep": sweep.spec.name,
        "folder": str(sweep.folder),
        "state": _overall(sweep.folder, left, members, cells),
        "objective": list(sweep.spec.objective),
        "storage": sweep.spec.storage,
        "runs": sum(cell["total"] for cell in cells),
        "left": left,
        "eta_s": None if None in etas else sum(etas),
        "cells": cells,
        "workers": [_worker(member) for member in members],
        "failures": _failures(sweep, tuning, finals, {member.name: member for member in members}),
    }


def _reap(sweep: OpenSweep) -> None:
    try:
        with sweep.lock().acquire(timeout=1):
            plan.reap(sweep)
    except (Timeout, OSError):  # somebody else plans just now, or only reads are allowed here
        pass


def _overall(folder: Path, left: int, members: Sequence[WorkerInfo], cells: Sequence[dict[str, Any]]) -> str:
    if not left:
        return "failed" if cells and all(cell["nothing_to_choose"] for cell in cells) else "complete"
    states = {member.state for member in members}
    for state in ("running", "pending"):
        if state in states:
            return state
    return "cancelled" if (folder / STOP).exists() else "stopped"


def _cell(
    sweep: OpenSweep,
    cell: Cell,
    tuning: list[FrozenTrial],
    finals: list[FrozenTrial],
    lost: bool,
    overall_s: float | None,
    present: int,
) -> dict[str, Any]:
    tune = Counts(total=sweep.spec.tune.trials)
    final = Counts(total=0 if lost else len(sweep.spec.final.seeds))
    tune.add(tuning, cell.id)
    final.add(finals, cell.id)
    both = {
        key: getattr(tune, key) + getattr(final, key)
        for key in ("total", "waiting", "running", "done", "failed", "pruned")
    }
    mean_s = _mean_s([*tuning, *finals]) or overall_s
    left = tune.left + final.left
    known = left == 0 or (mean_s is not None and present > 0)
    return {
        "id": cell.id,
        **both,
        "trials_done": tune.total - tune.left,
        "trials": tune.total,
        "finals_done": final.total - final.left,
        "finals": final.total,
        "nothing_to_choose": lost,
        "best": _best(sweep, cell, tuning),
        "mean_run_s": mean_s,
        "eta_s": left * (mean_s or 0.0) / max(present, 1) if known else None,
    }


def _mean_s(trials: Sequence[FrozenTrial]) -> float | None:
    spans = [
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.datetime_complete and trial.datetime_start
    ]
    return fmean(spans) if spans else None


def _best(sweep: OpenSweep, cell: Cell, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """The best complete trial so far, of several objectives by the first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return None
    sign = -1 if sweep.studies[cell.id].directions[0] == StudyDirection.MAXIMIZE else 1
    best = min(complete, key=lambda trial: (sign * trial.values[0], trial.number))
    return {"trial": best.number, "values": best.values, "params": best.params}


def _worker(member: WorkerInfo) -> dict[str, Any]:
    keys = ("pid", "slot", "gpu", "threads", "run", "cell", "attempt", "finished", "reason", "code", "launched_with")
    age = member.status.get("age_s")
    return {
        "name": member.name,
        "state": member.state,
        "why": member.why,
        "cluster": member.cluster,
        "job_id": member.job_id,
        "host": member.host,
        **{key: member.status.get(key) for key in keys},
        "heartbeat_age_s": None if age is None else round(age, 1),
        "log": (log := member.status.get("log") or member.submitted.get("log")),
        "last_line": _last_line(log) if member.state in ("lost", "failed") else None,
    }


def _last_line(log: str | None) -> str | None:
    """The last thing a worker that died had to say."""
    try:
        with open(str(log), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return None
    return next((line for line in reversed(lines) if line), None)


def _failures(
    sweep: OpenSweep,
    tuning: dict[str, list[FrozenTrial]],
    finals: dict[str, list[FrozenTrial]],
    members: dict[str, WorkerInfo],
) -> list[dict[str, Any]]:
    return [
        {
            "run": (run_id := trial.user_attrs.get("run_id")),
            "cell": cell,
            "phase": phase,
            "trial": trial.number,
            "reason": trial.user_attrs.get("reason", "unknown"),
            "log": _log(sweep, run_id, members.get(trial.user_attrs.get("worker", ""))),
        }
        for phase, cells in (("tune", tuning), (FINALS.removesuffix("s"), finals))
        for cell, trials in cells.items()
        for trial in trials
        if trial.state == TrialState.FAIL
    ]


def _log(sweep: OpenSweep, run_id: str | None, member: WorkerInfo | None) -> str | None:
    """The run's own log; its worker's, for a run that did not come so far."""
    if run_id and (path := sweep.run_directory(run_id).path / LOG).exists():
        return str(path)
    return str(member.status.get("log") or member.submitted.get("log")) if member else None
