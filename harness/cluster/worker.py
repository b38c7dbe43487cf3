"""A worker: claims runs, carries them out and reports their values until none is left or it is asked to stop."""

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit import JobEnvironment
from submitit.helpers import Checkpointable, DelayedSubmission

from harness.cluster.signals import StopRequest
from harness.cluster.slots import host_and_job, job_id, take_slot, wait_for_siblings
from harness.core.errors import Pruned, Stopped, UserError
from harness.records import code_version, run_log, schema
from harness.records.files import check_disk
from harness.records.heartbeat import Heartbeat
from harness.records.sweep_directory import SweepDirectory

if TYPE_CHECKING:
    from harness.sweep.queue import Claim, OpenSweep

#: Seconds between an idle worker's looks at the queue: at first, and at most.
IDLE_S = (0.5, 5.0)


@dataclass
class Worker(Checkpointable):
    """What a job runs. Pickled by Submitit, so it holds plain values only.

    folder: the sweep's; sweep.json is read when the worker starts, since the sweep may have grown by then.
    threads: CPU threads of a run, None to ask Slurm. slots: of a local worker, which works in the first free one.
    runs_per_gpu: Slurm tasks that share a GPU. grace_s: seconds to write a checkpoint once Slurm asks for it.
    keep_signals: for tests and `debug`, which own their process.
    """

    folder: str
    name: str
    threads: int | None = None
    slots: tuple[str, ...] = ()
    runs_per_gpu: int = 1
    grace_s: float = 60.0
    keep_signals: bool = False
    _beat: Heartbeat | None = field(default=None, init=False, repr=False)
    _epoch_ended: float | None = field(default=None, init=False, repr=False)

    def __call__(self) -> int:
        """Work; returns how many runs were finished."""
        folder = Path(self.folder)
        stop = StopRequest(folder, self.grace_s)
        if not self.keep_signals:
            stop.listen()
        stop.look()  # the sweep may have been cancelled while this worker was queued
        with take_slot(folder, self.slots, self.runs_per_gpu) as where:
            if self.threads is None:
                self.threads = where.threads
            if self.threads is not None:  # before torch is imported, which reads it once
                os.environ["OMP_NUM_THREADS"] = str(self.threads)
            files = SweepDirectory(folder).worker(self.name + (f".{where.rank}" if where.tasks > 1 else ""))
            with Heartbeat(files, job_id(), stop.look) as beat:
                self._beat, stop.beat = beat, beat
                log = str(JobEnvironment().paths.stderr) if "SUBMITIT_FOLDER" in os.environ else None
                beat.note(slot=where.slot, gpu=where.gpu, threads=self.threads, log=log, run=None, finished=0)
                finished = self._work(files.path.name, stop) if where.free else 0
                wait_for_siblings(folder, self.name, where)
                beat.state = stop.ending()
        stop.requeue()
        return finished

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """What Submitit submits again after preemption or at the time limit: the same worker."""
        return DelayedSubmission(replace(self))

    def perform(self, sweep: "OpenSweep", claim: "Claim", stop: StopRequest) -> list[float]:
        """Carry out a claimed run; returns its objectives."""
        from harness.sweep import queue

        return queue.objectives(sweep, claim, self._run(sweep, claim, stop))

    def _work(self, name: str, stop: StopRequest) -> int:
        from harness.sweep import plan, queue

        sweep = queue.load_sweep(Path(self.folder))
        self._note(code=code_version.named(code_version.code_version()), launched_with=None)
        launched_with = code_version.check_launched(sweep.files.code, sweep.spec.changed_code == "refuse")
        self._note(launched_with=launched_with)
        with sweep.files.lock("plan"):
            plan.reap(sweep, of=name)
        finished, idle_s = 0, IDLE_S[0]
        while not stop.asked():
            claim = queue.claim(sweep, name)
            if claim is not None:
                finished, idle_s = finished + self._carry_out(sweep, claim, stop), IDLE_S[0]
                self._note(run=None, cell=None, trial=None, phase=None, epoch=None, epoch_s=None, finished=finished)
                continue
            plan.top_up(sweep)
            # Wait while running trials can still lead to finals; not for finals that others run.
            if sum(phase.waiting for phase in plan.count(sweep).values()) <= 0:
                break
            stop.sleep(idle_s * random.uniform(0.8, 1.2))  # or all idle workers would ask at once
            idle_s = min(2 * idle_s, IDLE_S[1])
        return finished

    def _note(self, **fields: Any) -> None:
        if self._beat is not None:
            self._beat.note(**fields)

    def _count_epoch(self, epoch: int) -> None:
        """Note how far the run is, and how long its last epoch took; the heartbeat writes it."""
        before, self._epoch_ended = self._epoch_ended, time.monotonic()
        if self._beat is not None:
            took = None if before is None else self._epoch_ended - before
            self._beat.fields |= {"epoch": epoch, "epoch_s": took}

    def _carry_out(self, sweep: "OpenSweep", claim: "Claim", stop: StopRequest) -> int:
        from harness.sweep import plan, queue
        from harness.sweep.storage import StorageAway

        try:
            end: Callable[[], None] = partial(queue.tell, claim, self.perform(sweep, claim, stop))
        except Stopped:
            queue.put_back(sweep, claim.trial)
            return 0
        except Pruned:
            end = partial(queue.tell, claim, None)
        except StorageAway:
            raise  # not the run's fault; another process puts its trial back
        except Exception as error:
            try:
                check_disk(sweep.folder, error)
            except UserError:
                with suppress(OSError):  # if this cannot be written either, another process puts it back
                    queue.put_back(sweep, claim.trial)
                raise
            reason, retry = f"{type(error).__name__}: {error}", not isinstance(error, UserError)
            print(f"{claim.cell.id}, {claim.phase}: {reason}", flush=True)
            end = partial(queue.tell_failed, sweep, claim, reason, retry)
        end()
        if claim.phase == "tune" and plan.is_tuned(sweep, claim.cell):
            plan.top_up(sweep)
        return 1

    def _run(self, sweep: "OpenSweep", claim: "Claim", stop: StopRequest) -> dict[str, Any]:
        from harness.sweep import queue, same_data
        from harness.sweep.rebuild import note_trial
        from harness.training.run import RunContext, epoch_line, run

        config, run_id = claim.config, claim.run_id
        files = sweep.files.run(run_id)
        files.path.mkdir(parents=True, exist_ok=True)
        if self.threads is not None and config.runtime.threads is None:
            runtime = config.runtime.model_copy(update={"threads": self.threads})
            config = config.model_copy(update={"runtime": runtime})
        launched_with = self._beat.fields.get("launched_with") if self._beat else None
        report = _reporter(sweep, claim)
        under_way = {"epoch": None, "epochs": config.train.epochs, "epoch_s": None}
        self._note(run=run_id, cell=claim.cell.id, phase=claim.phase, trial=claim.trial.number, **under_way)
        self._epoch_ended = None
        heading = f"{claim.cell.id}, {claim.phase}, trial {claim.trial.number}, worker {self.name}, {host_and_job()}"
        with files.locked(stop.asked), run_log.logged(files.log, heading) as note:
            note_trial(files, claim)

            def epoch_done(metrics: dict[str, Any]) -> None:
                note(epoch_line(config, metrics))
                self._count_epoch(metrics[schema.EPOCH])
                report(metrics)

            context = RunContext(
                epoch_done=epoch_done,
                should_stop=stop.asked,
                tags=(sweep.spec.name,),
                keep_best={"all": True, "none": False, "finals": claim.phase == "final"}[sweep.spec.keep_best],
                job_id=job_id(),
                notes={"launched_with": launched_with} if launched_with else {},
                labels=_labels(sweep, claim),
                pretrained=sweep.files.pretrained,
                no_mirror=partial(claim.trial.set_user_attr, queue.NO_MIRROR),
                data_read=partial(same_data.keep, sweep.files),
            )
            return run(config, files.path, context)


def _labels(sweep: "OpenSweep", claim: "Claim") -> dict[str, Any]:
    """The sweep, cell and trial of a run, for W&B, which has neither cells.json nor the queue."""
    return {
        schema.SWEEP: sweep.spec.name,
        schema.CELL: claim.cell.id,
        schema.TRIAL: claim.trial.number,
        "grid": dict(claim.cell.grid),
        "params": dict(claim.params),
        "objective": sweep.spec.objectives,
    }


def _reporter(sweep: "OpenSweep", claim: "Claim") -> Callable[[dict[str, Any]], None]:
    from harness.sweep import objective
    from harness.sweep.samplers import make_pruner

    if claim.phase != "tune" or sweep.spec.pruner.name == "none":
        return lambda metrics: None
    claim.study.pruner = make_pruner(sweep.spec)

    def report(metrics: dict[str, Any]) -> None:
        value = objective.epoch_value(sweep.spec.objective[0], metrics, claim.config)
        claim.trial.report(value, metrics[schema.EPOCH])
        if claim.trial.should_prune():
            raise Pruned

    return report
