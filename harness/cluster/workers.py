"""The workers of a sweep, from their own status, the entry of the launch that submitted them, and Slurm's queue.

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
from harness.records.sweep_directory import SweepDirectory

#: A submitted local worker that has written no status after this long never started.
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
    why: str | None = None  # Slurm's reason why a job waits; or that Slurm does not answer

    @property
    def present(self) -> bool:
        """Whether it works, or will without being submitted again."""
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

    @property
    def log(self) -> str | None:
        """The file that its standard error goes to."""
        return self.status.get("log") or self.submitted.get("log")


def list_workers(folder: Path) -> list[WorkerInfo]:
    """All workers that a sweep ever had, in the order of their names."""
    now = files_clock(folder)
    found = []
    for files in SweepDirectory(folder).all_workers():
        submitted = read_json(files.submitted) or {}
        age = now - files.submitted.stat().st_mtime if submitted else STARTING_S
        found.append((files.path.name, read_status(files, now) or {}, submitted, age))
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
    state = str(status.get("state", ""))
    if submitted.get("cluster") == "slurm" and not _ended(status):
        if queue is None:  # unknown: a worker too many would be worse than one missing for a while
            return "lost" if state == "running" else state if state in ("cancelled", "failed") else "pending"
        in_queue, _ = queue.get(_job(status, submitted), ("", ""))
        if in_queue and (in_queue not in _OVER or state == "requeued"):
            return "pending"
    if state in ("done", "cancelled", "failed"):
        return state
    starting = not state and submitted.get("cluster") != "slurm" and age_s < STARTING_S
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
