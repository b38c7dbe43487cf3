"""`python -m harness.launch SWEEP.yaml --cluster {local,slurm,debug}`: make a sweep complete.

Idempotent: it creates or loads the studies, counts what is missing and starts that many workers, at most
`--workers`. Launching a finished sweep does nothing; launching an interrupted one finishes it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import profile, sweep
from harness.errors import UserError, run_command
from harness.sweep import SweepSpec

if TYPE_CHECKING:
    from harness.plan import Counts
    from harness.study import Sweep
    from harness.worker import Worker

#: Submitit's local jobs end after two minutes unless told otherwise; a sweep may take a month.
LOCAL_LIMIT_MIN = 60 * 24 * 30


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.launch", description="Carry out a sweep.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    parser.add_argument("--cluster", choices=("local", "slurm", "debug"), default="local", help="default: local")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the Slurm cluster (see slurm/)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="at once; default: one a GPU, or a CPU core")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--detach", action="store_true", help="go on in the background, independent of this terminal")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the file")
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.profile is not None and options.cluster != "slurm":
        raise UserError(f"--profile is for --cluster slurm, not {options.cluster}")
    spec = sweep.read(options.sweep, options.set)
    slurm = profile.read(options.profile)
    cells = sweep.expand(spec)
    from harness import dry_run
    from harness.algorithms import check_algorithms

    check_algorithms(spec)
    dry_run.check_stacks(cells, spec.tune.seed)
    workers = options.workers or spec.workers or default_workers(options.cluster)
    if options.dry_run:
        dry_run.show(spec, cells, options.cluster, workers, slurm, options.root)
        return 0
    dry_run.check_data(spec, cells)
    if options.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("--cluster slurm: sbatch is not on this machine; log in to the cluster, or use --cluster local")
    dry_run.prepare_data(spec, cells)
    return _launch(spec, options, workers, slurm)


def _launch(spec: SweepSpec, options: argparse.Namespace, workers: int, slurm: profile.Profile) -> int:
    from harness import plan, progress, tracking
    from harness.study import open_sweep

    opened = open_sweep(spec, options.root)
    plan.top_up(opened)
    missing = _left(plan.count(opened))
    if not missing:
        print(f"{opened.folder}: complete, nothing to do")
        return progress.summary(opened)
    if options.detach and options.cluster == "local":
        return _detach(opened.folder / "launch.log")
    runtime = dict(spec.base.get("runtime", {}))
    print(tracking.explain_mode(tracking.wandb_mode(runtime.get("wandb", "auto"))))
    wanted = max(0, min(workers, missing) - len(plan.live_workers(opened)))
    fleet = Fleet(opened, options.cluster, workers, slurm)
    if options.cluster == "debug":
        fleet.worker(0, keep_signals=True)()
        return progress.summary(opened)
    fleet.submit(wanted)
    if options.cluster == "slurm":
        print(f"{wanted} workers submitted for {missing} runs; results come to {opened.folder}")
        return 0
    return _follow(opened, fleet)


def _left(counts: dict[str, "Counts"]) -> int:
    return sum(phase.left for phase in counts.values())


def _follow(opened: "Sweep", fleet: "Fleet") -> int:
    """Show progress until the sweep is complete, replacing workers that die while work is left."""
    from harness import plan, progress

    try:
        with progress.Display() as display:
            while left := _left(counts := plan.count(opened)):
                display.show(opened, counts)
                fleet.replace_dead(left)
                time.sleep(0.5)
            display.show(opened, counts)
    except KeyboardInterrupt:
        print("interrupted: workers write their checkpoints and stop; the same command continues", file=sys.stderr)
        fleet.stop()
        raise
    return progress.summary(opened)


class Fleet:
    """The workers of one launch."""

    #: Workers that may die in a row without finishing a run before the launch gives up.
    PATIENCE = 5

    def __init__(self, opened: "Sweep", cluster: str, slots: int, slurm: profile.Profile) -> None:
        self._opened, self._cluster, self._slots, self._slurm = opened, cluster, slots, slurm
        self._jobs: list[Any] = []
        self._started, self._deaths, self._left = 0, 0, 0
        self._stamp = f"{int(time.time()):x}-{os.getpid():x}"

    def worker(self, slot: int, keep_signals: bool = False) -> "Worker":
        """The worker of a slot, bound to its GPU, or to its share of the CPU cores."""
        from harness.worker import Worker

        gpus = visible_gpus() if self._cluster == "local" else []
        name = f"{self._stamp}-{self._started}"
        self._started += 1
        return Worker(
            folder=str(self._opened.folder.resolve()),
            name=name,
            threads=None if self._cluster == "slurm" else max(1, _cores() // self._slots),
            gpus=gpus[slot % len(gpus)] if gpus else None,
            keep_signals=keep_signals,
        )

    def submit(self, count: int) -> None:
        """Start workers, as one job array on Slurm."""
        if count == 0:
            return
        import submitit

        logs = self._opened.folder / "logs"
        if self._cluster == "slurm":
            executor: Any = submitit.SlurmExecutor(folder=logs, max_num_timeout=1000)
            executor.update_parameters(job_name=self._opened.spec.name, **self._slurm.submitit_parameters(count))
            try:
                with executor.batch():
                    self._jobs = [executor.submit(self.worker(slot)) for slot in range(count)]
            except submitit.core.utils.FailedJobError as error:
                raise UserError(f"--cluster slurm: sbatch refused the job: {_last_line(error)}") from None
            return
        executor = submitit.LocalExecutor(folder=logs)
        executor.update_parameters(timeout_min=LOCAL_LIMIT_MIN)
        # Submitit's controllers share our terminal; Ctrl-C is for us, who then ask the workers to stop.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._jobs += [executor.submit(self.worker(len(self._jobs) + slot)) for slot in range(count)]
        finally:
            signal.signal(signal.SIGINT, before)

    def replace_dead(self, left: int) -> None:
        """Start workers in place of those that ended while work is left. Raises UserError when none gets anywhere."""
        self._jobs, ended = _partition(self._jobs)
        if not ended:
            return
        self._deaths = self._deaths + len(ended) if left == self._left else len(ended)
        self._left = left
        if self._deaths > self.PATIENCE * self._slots:
            raise UserError(
                f"{self._deaths} workers ended without finishing a run; the last log is {ended[-1].paths.stderr}"
            )
        from harness import plan

        plan.top_up(self._opened)
        waiting = sum(phase.left - phase.running for phase in plan.count(self._opened).values())
        self.submit(max(0, min(self._slots, waiting) - len(self._jobs)))

    def stop(self, patience_s: float = 20.0) -> None:
        """Ask the workers to stop and wait for them to have written their checkpoints."""
        for job in self._jobs:
            if job._process is not None and job._process.poll() is None:
                job._process.terminate()
        end = time.monotonic() + patience_s
        while self._jobs and time.monotonic() < end:
            self._jobs, _ = _partition(self._jobs)
            time.sleep(0.1)


def _last_line(error: Exception) -> str:
    """What sbatch said, without Submitit's traceback around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "sbatch" in line or "slurm" in line.lower()]
    return (said or lines or ["no reason given"])[-1]


def _partition(jobs: list[Any]) -> tuple[list[Any], list[Any]]:
    """Local jobs whose controller runs, and those whose controller ended."""
    running = [job for job in jobs if job._process.poll() is None]
    return running, [job for job in jobs if job not in running]


def default_workers(cluster: str) -> int:
    """One worker a GPU, or one a CPU core; 8 jobs on Slurm; one in debug."""
    if cluster == "slurm":
        return 8
    return 1 if cluster == "debug" else len(visible_gpus()) or _cores()


def visible_gpus() -> list[str]:
    """The CUDA devices that a local launch may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(answer.stdout.splitlines()) if line.startswith("GPU ")]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _detach(log: Path) -> int:
    """Carry the launch on in a session of its own, which survives this terminal."""
    kept = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.launch", *kept],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    print(f"detached as process {process.pid}; log: {log}; the same command without --detach shows progress")
    return 0


if __name__ == "__main__":
    run_command(main)
