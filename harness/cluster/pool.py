"""The workers of a launch: how many are missing, and submitting them, here or to Slurm."""

import os
import signal
import time
from typing import Any

import submitit

from harness.cluster import slurm
from harness.cluster.profile import Profile
from harness.cluster.slots import cores
from harness.cluster.waiting import asked
from harness.cluster.worker import Worker
from harness.cluster.worker_info import WorkerInfo, list_workers, present_on
from harness.core.errors import UserError
from harness.core.wording import counted
from harness.records.files import check_disk
from harness.records.heartbeat import process_identity
from harness.sweep import plan
from harness.sweep.queue import OpenSweep

#: Submitit's local jobs end after two minutes by default; a sweep may take a month.
LOCAL_LIMIT_MIN = 60 * 24 * 30
#: Lines of a dead worker's log in the message of a launch that gives up.
LOG_LINES = 5


class _GiveUp:
    """Decides when a launch stops replacing workers: when too many die in a row and no run ends in between."""

    #: Workers that may die in a row: this many, or twice the number wanted.
    LIMIT = 10

    def __init__(self, wanted: int) -> None:
        self._limit = max(self.LIMIT, 2 * wanted)
        self._left, self._dead, self._dead_before = -1, 0, 0  # dead: so far, and when a run last ended

    def note(self, left: int, dead: int) -> bool:
        """Record how many runs are left and how many workers have died; returns whether more died than before."""
        more, self._dead = dead > self._dead, dead
        if left != self._left:
            self._left, self._dead_before = left, dead
        return more

    @property
    def in_a_row(self) -> int:
        """How many have died since a run last ended."""
        return self._dead - self._dead_before

    def is_due(self, none_starts: bool) -> bool:
        """Whether to give up. none_starts: workers fail by themselves, and none is present."""
        return self.in_a_row > self._limit or (self.in_a_row > 1 and none_starts)


class WorkerPool:
    """The workers of one launch. workers: how many at once, on Slurm or this machine, other launches' included."""

    def __init__(
        self, opened: OpenSweep, cluster: str, workers: int, profile: Profile, slots: tuple[str, ...] = ()
    ) -> None:
        self._opened, self._cluster, self._workers = opened, cluster, workers
        self._profile, self._slots = profile, slots
        self._jobs: list[Any] = []
        self._mine: set[str] = set()
        self._started, self._missing_before = 0, 0
        self._give_up = _GiveUp(workers)
        self._stamp = f"{int(1000 * time.time()):x}-{os.getpid():x}"

    def worker(self, keep_signals: bool = False) -> Worker:
        """The next worker; a local one takes its slot and its share of the CPU cores when it starts."""
        name = f"{self._stamp}-{self._started}"
        self._started += 1
        on_slurm = self._cluster == "slurm"
        return Worker(
            folder=str(self._opened.folder.resolve()),
            name=name,
            threads=None if on_slurm else max(1, cores() // self._workers),
            slots=() if on_slurm or keep_signals else self._slots,
            runs_per_gpu=self._profile.runs_per_gpu or self._opened.spec.runs_per_gpu,
            grace_s=max(1.0, 0.7 * self._profile.signal_delay_s),
            keep_signals=keep_signals,
        )

    def submit_missing(self) -> int:
        """Submit the workers that are missing; returns how many. Two launches at once submit one set."""
        with self._opened.files.lock("launch"):
            present = present_on(list_workers(self._opened.folder), self._cluster)
            count = max(0, min(self._workers, plan.left(self._opened)) - present)
            if count:
                self._submit(count)
            return count

    def replace_lost(self) -> None:
        """Put back the trials of dead workers and submit new ones. Raises UserError when no worker finishes a run."""
        for job in self._jobs:
            job.poll()  # collects its exit status: a zombie would look alive
        workers, left = list_workers(self._opened.folder), plan.left(self._opened)
        missing = min(self._workers, left) - present_on(workers, self._cluster)
        # A job that is being requeued is out of sight for a moment.
        confirmed, self._missing_before = min(missing, self._missing_before), missing
        dead = [worker for worker in workers if worker.name in self._mine and worker.state in ("lost", "failed")]
        if self._give_up.note(left, len(dead)):
            check_disk(self._opened.folder)  # on a full disk the workers cannot report it
        failing = any(worker.state == "failed" for worker in dead)
        if self._give_up.is_due(failing and not any(worker.present for worker in workers)):
            ended = f"{counted(len(dead), 'worker')} ended without finishing a run"
            raise UserError(f"{ended}{_why(dead[-self._give_up.in_a_row])}")
        if confirmed > 0:
            plan.top_up(self._opened)
            self.submit_missing()

    def stop(self, patience_s: float = 20.0) -> tuple[int, list[WorkerInfo]]:
        """Ask this launch's local workers to stop and wait for them to have written their checkpoints.

        Returns how many have stopped, and those that still run.
        """
        asked = [job for job in self._jobs if job.poll() is None]
        for job in asked:
            job.terminate()
        end = time.monotonic() + patience_s
        while any(job.poll() is None for job in asked) and time.monotonic() < end:
            time.sleep(0.1)
        if all(job.poll() is not None for job in asked):
            return len(asked), []
        workers = list_workers(self._opened.folder)
        running = [worker for worker in workers if worker.name in self._mine and worker.present]
        return max(0, len(asked) - len(running)), running

    def _submit(self, count: int) -> None:
        if self._cluster == "slurm":
            self._submit_to_slurm(count)
            return
        executor = submitit.LocalExecutor(folder=self._opened.files.logs)
        executor.update_parameters(timeout_min=LOCAL_LIMIT_MIN)
        # Submitit's controllers share our terminal; Ctrl-C is for this process, which then asks the workers to stop.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(count):
                worker = self.worker()
                job = executor.submit(worker)
                self._jobs.append(job._process)  # type: ignore[attr-defined]
                self._register(worker.name, job, 0)
        finally:
            signal.signal(signal.SIGINT, before)

    def _submit_to_slurm(self, count: int) -> None:
        spec = self._opened.spec
        tasks = self._profile.workers_a_job(spec.runs_per_gpu)
        workers = [self.worker() for _ in range(-(-count // tasks))]
        jobs = slurm.submit(spec, self._profile, workers, self._opened.folder.parent)
        for worker, job in zip(workers, jobs, strict=True):
            for rank in range(tasks):
                self._register(worker.name + (f".{rank}" if tasks > 1 else ""), job, rank)

    def _register(self, name: str, job: Any, rank: int) -> None:
        log = submitit.core.utils.JobPaths(job.paths.folder, job.job_id, rank).stderr
        self._mine.add(name)
        on_slurm = {"asked": asked(self._profile)} if self._cluster == "slurm" else {}
        self._opened.files.worker(name).note_submitted(
            cluster=self._cluster,
            job_id=job.job_id,
            log=str(log),
            submitted=time.time(),
            by=process_identity(),
            **on_slurm,
        )


def _why(dead: WorkerInfo) -> str:
    """The reason that a dead worker gave, and the end of its log."""
    reason = f": {dead.status['reason']}" if "reason" in dead.status else ""
    lines = dead.last_lines(LOG_LINES)
    if not lines:
        return f"{reason}; the first of them wrote no log to {dead.log}: do the nodes see that folder?"
    return f"{reason}; the log of the first, {dead.log}, ends with:" + "".join(f"\n  {line}" for line in lines)
