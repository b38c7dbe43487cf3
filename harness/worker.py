"""A worker: claims a run, carries it out, tells its value, until nothing is left or it is asked to stop."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from submitit.helpers import Checkpointable, DelayedSubmission

from harness.record import Heartbeat, RunDirectory

if TYPE_CHECKING:
    from harness.study import Claim, Sweep

#: How often an idle worker looks for work that other workers may bring about.
IDLE_S = 0.5


@dataclass
class Worker(Checkpointable):
    """What a job runs. Pickled by Submitit, so it holds plain values only.

    folder: the sweep's, whose sweep.json is read when the worker starts: the sweep may have grown meanwhile.
    gpus: the CUDA devices to bind to, None to leave the environment as it is (Slurm binds its own).
    threads: CPU threads of a run. keep_signals: for tests and `debug`, which own their process.
    """

    folder: str
    name: str
    threads: int | None = None
    gpus: str | None = None
    keep_signals: bool = False
    _asked: bool = field(default=False, init=False)

    def __call__(self) -> int:
        """Work; returns how many runs were finished."""
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.threads is not None:  # before torch is imported, which reads it once
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        requeue = None if self.keep_signals else self._listen()
        from harness.study import load_sweep

        sweep = load_sweep(Path(self.folder))
        files = RunDirectory(sweep.folder / "workers" / self.name)
        with Heartbeat(files, _job_id()) as beat:
            finished = self._work(sweep)
            beat.state = "done"
        if requeue is not None:
            requeue()
        return finished

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """What Submitit submits again after preemption or at the time limit: the same worker."""
        again = Worker(self.folder, self.name, self.threads, self.gpus, self.keep_signals)
        return DelayedSubmission(again)

    def _work(self, sweep: "Sweep") -> int:
        from harness import plan, study

        finished = 0
        while not self._asked:
            claim = study.claim(sweep, self.name)
            if claim is not None:
                finished += self._carry_out(sweep, claim)
                continue
            plan.top_up(sweep)
            counts = plan.count(sweep)
            # Wait while trials that others run can still bring finals; not for finals that others run.
            waiting = sum(phase.left - phase.running for phase in counts.values())
            if waiting <= 0:
                break
            time.sleep(IDLE_S)
        return finished

    def _carry_out(self, sweep: "Sweep", claim: "Claim") -> int:
        from harness import plan, study
        from harness.train import Pruned, Stopped

        try:
            record = self._run(sweep, claim)
        except Stopped:
            study.put_back(sweep, claim.trial)
            return 0
        except Pruned:
            study.tell_pruned(claim)
        except Exception as error:
            print(f"run {claim.run_id} ({claim.cell.id}, {claim.phase}): {error}", flush=True)
            study.tell_failed(sweep, claim, f"{type(error).__name__}: {error}")
        else:
            study.tell(sweep, claim, record)
        plan.top_up(sweep)
        return 1

    def _run(self, sweep: "Sweep", claim: "Claim") -> dict[str, Any]:
        from filelock import FileLock

        from harness.run import run

        files = sweep.run_directory(claim.run_id)
        files.path.mkdir(parents=True, exist_ok=True)
        config = claim.config
        if self.threads is not None and config.runtime.threads is None:
            runtime = config.runtime.model_copy(update={"threads": self.threads})
            config = config.model_copy(update={"runtime": runtime})
        keep = {"all": True, "none": False, "finals": claim.phase == "final"}[sweep.spec.keep_best]
        tags = (sweep.spec.name,)
        # Two cells may name one run; the second waits here and then finds the record.
        with FileLock(files.path / "run.lock"):
            return run(config, files.path, _reporter(sweep, claim), lambda: self._asked, tags, keep, _job_id())

    def _listen(self) -> Callable[[], None]:
        """Stop between two steps on SIGTERM, SIGINT and Submitit's SIGUSR2; the last one requeues afterwards."""
        before = signal.getsignal(signal.SIGUSR2)
        got: list[tuple[int, FrameType | None]] = []

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            got.append((number, frame))

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, ask)

        def requeue() -> None:
            preempted = [item for item in got if item[0] == signal.SIGUSR2]
            if preempted and callable(before):
                before(*preempted[0])

        return requeue


def _reporter(sweep: "Sweep", claim: "Claim") -> Callable[[dict[str, Any]], None]:
    """Tells the pruner each epoch's value; does nothing without a pruner."""
    from harness import study
    from harness.algorithms import make_pruner
    from harness.schema import EPOCH
    from harness.train import Pruned

    if claim.phase != "tune" or sweep.spec.pruner.name == "none":
        return lambda metrics: None
    claim.study.pruner = make_pruner(sweep.spec)

    def report(metrics: dict[str, Any]) -> None:
        claim.trial.report(study.values_of(sweep, claim.config, metrics)[0], metrics[EPOCH])
        if claim.trial.should_prune():
            raise Pruned

    return report


def _job_id() -> str | None:
    """The job this process runs in, as `squeue` names it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")
