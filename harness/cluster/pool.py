"""The workers of a launch: how many are missing, and submitting them, here or to Slurm."""

import os
import signal
import time
from socket import gethostname
from typing import Any

import submitit

from harness.cluster.slots import cores
from harness.cluster.slurm import Profile, sbatch_error
from harness.cluster.worker import Worker
from harness.cluster.worker_info import WorkerInfo, list_workers
from harness.core.errors import UserError
from harness.records.files import check_disk
from harness.records.heartbeat import process_identity
from harness.sweep import plan
from harness.sweep.queue import OpenSweep

#: Submitit's local jobs end after two minutes by default; a sweep may take a month.
LOCAL_LIMIT_MIN = 60 * 24 * 30
#: Jobs of one array: Slurm's MaxArraySize is 1001 unless an administrator chose otherwise.
ARRAY_SIZE = 1000


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

    def is_due(self, none_starts: bool) -> bool:
        """Whether to give up. none_starts: workers fail by themselves, and none is present."""
        in_a_row = self._dead - self._dead_before
        return in_a_row > self._limit or (in_a_row > 1 and none_starts)


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
        slurm = self._cluster == "slurm"
        return Worker(
            folder=str(self._opened.folder.resolve()),
            name=name,
            threads=None if slurm else max(1, cores() // self._workers),
            slots=() if slurm or keep_signals else self._slots,
            runs_per_gpu=self._profile.runs_per_gpu or self._opened.spec.runs_per_gpu,
            grace_s=max(1.0, 0.7 * self._profile.signal_delay_s),
            keep_signals=keep_signals,
        )

    def submit_missing(self) -> int:
        """Submit the workers that are missing; returns how many. Two launches at once submit one set."""
        with self._opened.files.lock("launch"):
            present = self._present(list_workers(self._opened.folder))
            count = max(0, min(self._workers, plan.left(self._opened)) - present)
            if count:
                self._submit(count)
            return count

    def _present(self, workers: list[WorkerInfo]) -> int:
        """How many workers are present: all on Slurm, or this machine's; other machines have slots of their own."""
        here = [worker for worker in workers if worker.cluster == self._cluster and worker.present]
        return len(here) if self._cluster == "slurm" else sum(worker.host == gethostname() for worker in here)

    def replace_lost(self) -> None:
        """Put back the trials of dead workers and submit new ones. Raises UserError when no worker finishes a run."""
        for job in self._jobs:
            job.poll()  # collects its exit status: a zombie would look alive
        workers, left = list_workers(self._opened.folder), plan.left(self._opened)
        missing = min(self._workers, left) - self._present(workers)
        # A job that is being requeued is out of sight for a moment.
        confirmed, self._missing_before = min(missing, self._missing_before), missing
        dead = [worker for worker in workers if worker.name in self._mine and worker.state in ("lost", "failed")]
        if self._give_up.note(left, len(dead)):
            check_disk(self._opened.folder)  # on a full disk the workers cannot report it
        failing = any(worker.state == "failed" for worker in dead)
        if self._give_up.is_due(failing and not any(worker.present for worker in workers)):
            last = dead[-1]
            reason = f": {last.status['reason']}" if "reason" in last.status else ""
            raise UserError(f"{len(dead)} workers ended without finishing a run{reason}; the last log is {last.log}")
        if confirmed > 0:
            plan.top_up(self._opened)
            self.submit_missing()

    def stop(self, patience_s: float = 20.0) -> None:
        """Ask this launch's local workers to stop and wait for them to have written their checkpoints."""
        for job in self._jobs:
            if job.poll() is None:
                job.terminate()
        end = time.monotonic() + patience_s
        while any(job.poll() is None for job in self._jobs) and time.monotonic() < end:
            time.sleep(0.1)

    def _submit(self, count: int) -> None:
        if self._cluster == "slurm":
            tasks = self._profile.workers_a_job(self._opened.spec.runs_per_gpu)
            jobs = -(-count // tasks)
            for start in range(0, jobs, ARRAY_SIZE):
                self._submit_array(min(ARRAY_SIZE, jobs - start), tasks)
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

    def _submit_array(self, jobs: int, tasks: int) -> None:
        executor: Any = submitit.SlurmExecutor(folder=self._opened.files.logs, max_num_timeout=100_000)
        parameters = self._profile.submitit_parameters(jobs, tasks)
        executor.update_parameters(job_name=self._opened.spec.name, **parameters)
        workers = [self.worker() for _ in range(jobs)]
        try:
            with executor.batch():
                submitted = [executor.submit(worker) for worker in workers]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"--cluster slurm: sbatch refused the job: {sbatch_error(error)}") from None
        for worker, job in zip(workers, submitted, strict=True):
            for rank in range(tasks):
                self._register(worker.name + (f".{rank}" if tasks > 1 else ""), job, rank)

    def _register(self, name: str, job: Any, rank: int) -> None:
        log = submitit.core.utils.JobPaths(job.paths.folder, job.job_id, rank).stderr
        self._mine.add(name)
        self._opened.files.worker(name).note_submitted(
            cluster=self._cluster, job_id=job.job_id, log=str(log), submitted=time.time(), by=process_identity()
        )
