"""Who works on a sweep: what each worker says of itself, what its launch submitted, what Slurm's queue holds.

    <sweep>/workers/<name>/status.json     written by the worker, every few seconds
                           submitted.json  written by the launch: cluster, job id, log

Slurm's accounting is never asked: many clusters have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cluster.slurm import NO_ANSWER, slurm_queue
from harness.records.files import read_json
from harness.records.heartbeat import files_clock, is_running, read_status
from harness.records.run_directory import RunDirectory

#: A submitted local worker that has not said anything after this long never started.
STARTING_S = 60.0
#: Slurm's states of a job that is over, though the queue may still show it.
_OVER = ("COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class WorkerInfo:
    """One worker. state: running | pending (submitted, requeued or starting) | done | cancelled | failed | lost."""

    name: str
    state: str
    status: Mapping[str, Any]
    submitted: Mapping[str, Any]
    why: str | None = None  # what Slurm says of a job that waits; or that Slurm says nothing

    @property
    def present(self) -> bool:
        """Whether it works, or will without anybody's help."""
        return self.state in ("running", "pending")

    @property
    def cluster(self) -> str:
        """Where it was submitted to."""
        return str(self.submitted.get("cluster", "local"))

    @property
    def host(self) -> str | None:
        """The machine it works on; for one that has not started, the machine it was submitted from."""
        return self.status.get("host") or self.submitted.get("by", {}).get("host")

    @property
    def job_id(self) -> str | None:
        """Its job, as squeue names it."""
        return self.status.get("job_id") or self.submitted.get("job_id")


def list_workers(folder: Path) -> list[WorkerInfo]:
    """All workers that a sweep ever had, in the order of their names."""
    now = files_clock(folder)
    paths = sorted(path for path in (folder / "workers").glob("*") if path.is_dir())
    found = []
    for path in paths:
        submitted = read_json(path / "submitted.json") or {}
        age = now - (path / "submitted.json").stat().st_mtime if submitted else STARTING_S
        found.append((path.name, read_status(RunDirectory(path), now) or {}, submitted, age))
    on_slurm = any(submitted.get("cluster") == "slurm" and not _ended(status) for _, status, submitted, _ in found)
    queue = slurm_queue() if on_slurm else {}
    return [
        WorkerInfo(name, _state(status, submitted, age, queue), status, submitted, _why(status, submitted, queue))
        for name, status, submitted, age in found
        if status or submitted
    ]


def _ended(status: Mapping[str, Any]) -> bool:
    return status.get("state") == "done"


def _state(
    status: Mapping[str, Any], submitted: Mapping[str, Any], age_s: float, queue: Mapping[str, tuple[str, str]] | None
) -> str:
    if is_running(status):
        return "running"
    said = str(status.get("state", ""))
    if submitted.get("cluster") == "slurm" and not _ended(status):
        if queue is None:  # nobody knows; a worker too many would be worse than one missing for a while
            return "lost" if said == "running" else said if said in ("cancelled", "failed") else "pending"
        in_queue, _ = queue.get(_job(status, submitted), ("", ""))
        if in_queue and (in_queue not in _OVER or said == "requeued"):
            return "pending"
    if said in ("done", "cancelled", "failed"):
        return said
    starting = not said and submitted.get("cluster") != "slurm" and age_s < STARTING_S
    return "pending" if starting else "lost"


def _job(status: Mapping[str, Any], submitted: Mapping[str, Any]) -> str:
    return str(status.get("job_id") or submitted.get("job_id"))


def _why(
    status: Mapping[str, Any], submitted: Mapping[str, Any], queue: Mapping[str, tuple[str, str]] | None
) -> str | None:
    if submitted.get("cluster") != "slurm" or _ended(status):
        return None
    if queue is None:
        return None if status.get("state") in ("cancelled", "failed") else NO_ANSWER
    state, reason = queue.get(_job(status, submitted), ("", ""))
    return reason if state == "PENDING" else None
