"""The workers of a sweep, from their own status, the entry of the launch that submitted them, and Slurm's queue.

    <sweep>/workers/<name>/status.json     written by the worker, every few seconds
                           submitted.json  written by the launch: cluster, job id, log

Slurm's accounting is never asked: many clusters have none.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from socket import gethostname
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
    """One worker: its status.json and submitted.json, and what Slurm's queue says.

    submitted_s: seconds since it was submitted. queue: of Slurm, None when Slurm does not answer.
    """

    name: str
    status: Mapping[str, Any]
    submitted: Mapping[str, Any]
    submitted_s: float
    queue: Mapping[str, tuple[str, str]] | None = field(default_factory=dict, repr=False)

    @cached_property
    def state(self) -> str:
        """running | pending (submitted, requeued or starting) | done | cancelled | failed | lost."""
        if is_running(self.status):
            return "running"
        state = str(self.status.get("state", ""))
        if self.may_be_queued:
            if self.queue is None:  # unknown: a worker too many would be worse than one missing for a while
                return "lost" if state == "running" else state if state in ("cancelled", "failed") else "pending"
            in_queue, _ = self.queue.get(str(self.job_id), ("", ""))
            if in_queue and (in_queue not in _OVER or state == "requeued"):
                return "pending"
        if state in ("done", "cancelled", "failed"):
            return state
        starting = not state and self.cluster != "slurm" and self.submitted_s < STARTING_S
        return "pending" if starting else "lost"

    @property
    def why(self) -> str | None:
        """Slurm's reason why its job waits; or that Slurm does not answer."""
        if not self.may_be_queued:
            return None
        if self.queue is None:
            return None if self.status.get("state") in ("cancelled", "failed") else NO_ANSWER
        state, reason = self.queue.get(str(self.job_id), ("", ""))
        return reason if state == "PENDING" else None

    @property
    def may_be_queued(self) -> bool:
        """Whether its job may be in Slurm's queue."""
        return self.cluster == "slurm" and self.status.get("state") != "done"

    @property
    def present(self) -> bool:
        """Whether it works, or will without being submitted again."""
        return self.state in ("running", "pending")

    @property
    def cluster(self) -> str:
        """Where it was submitted to."""
        return str(self.submitted.get("cluster", "local"))

    @property
    def launched_s(self) -> float:
        """When the launch that submitted it began, in seconds since 1970, by its name; 0 where that does not tell."""
        try:
            return int(self.name.partition("-")[0], 16) / 1000 if self.name.count("-") == 2 else 0.0
        except ValueError:
            return 0.0

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

    def last_lines(self, count: int = 1) -> list[str]:
        """The last lines of its log that hold something; none where there is no log."""
        try:
            with open(str(self.log), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        except OSError:
            return []
        return [line for line in lines if line][-count:]


def list_workers(folder: Path) -> list[WorkerInfo]:
    """All workers that a sweep ever had, in the order of their names."""
    now = files_clock(folder)
    found = []
    for files in SweepDirectory(folder).all_workers():
        submitted = read_json(files.submitted) or {}
        age = now - files.submitted.stat().st_mtime if submitted else STARTING_S
        if (status := read_status(files, now) or {}) or submitted:
            found.append(WorkerInfo(files.path.name, status, submitted, age))
    queue = slurm_queue() if any(worker.may_be_queued for worker in found) else {}
    return [replace(worker, queue=queue) for worker in found]


def since_last_launch(workers: Sequence[WorkerInfo]) -> set[str]:
    """The names of those that the last launch submitted, or that showed a sign of life since it began."""
    last_s, now_s = max((worker.launched_s for worker in workers), default=0.0), time.time()
    ages = {worker.name: float(worker.status.get("age_s", math.inf)) for worker in workers}
    return {one.name for one in workers if one.launched_s == last_s or now_s - ages[one.name] >= last_s}


def present_on(workers: Sequence[WorkerInfo], cluster: str) -> int:
    """How many are present on a cluster: all on Slurm, else this machine's; other machines have slots of their own."""
    there = [worker for worker in workers if worker.cluster == cluster and worker.present]
    return len(there) if cluster == "slurm" else sum(worker.host == gethostname() for worker in there)
