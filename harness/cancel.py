"""`python -m harness.cancel SWEEP.yaml`: stop a sweep's workers. Nothing finished is lost; launching again goes on."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.cli.find import sweep_folder, sweep_parser
from harness.cluster.slurm import NO_ANSWER, SlurmError, ask
from harness.cluster.worker_info import WorkerInfo, list_workers
from harness.core.command import run_command
from harness.core.wording import counted
from harness.records.files import write_json
from harness.records.heartbeat import is_alive, process_identity
from harness.records.sweep_directory import SweepDirectory

#: Workers on other machines see the request at their next heartbeat, and may be in the middle of a long step.
PATIENCE_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status: 1 when a worker did not stop in time."""
    options = sweep_parser("cancel", "Stop a sweep's workers.").parse_args(arguments)
    folder = sweep_folder(options.sweep, options.root)
    files = SweepDirectory(folder)
    write_json(files.stop, {"when": time.time(), "by": process_identity()})
    workers = list_workers(folder)
    silent = [worker for worker in workers if worker.present and worker.why == NO_ANSWER]
    asked = [worker for worker in workers if worker.present and worker not in silent]
    _ask(files, asked)
    left = _wait(folder, asked)
    from harness.cli.stopping import still_stopping, stopped
    from harness.sweep.queue import load_sweep

    print(stopped(load_sweep(folder), len(asked) - len(left), len(left) + len(silent)))
    if silent:
        print(f"Slurm does not answer: {counted(len(silent), 'job')}, if present, will stop when they see {files.stop}")
    for worker in left:
        print(still_stopping(worker), file=sys.stderr)
    return 1 if left or silent else 0


def _ask(files: SweepDirectory, workers: Sequence[WorkerInfo]) -> None:
    jobs = sorted({str(worker.job_id) for worker in workers if worker.cluster == "slurm"})
    if jobs:
        try:
            ask(["scancel", *jobs])
        except SlurmError as error:
            print(f"scancel: {error}; the workers will see {files.stop}", file=sys.stderr)
    here = process_identity()["machine"]
    for worker in workers:
        if not worker.status:  # it never started, so it will not write its own status
            write_json(files.worker(worker.name).status, {"state": "cancelled"})
        elif worker.cluster == "local" and worker.status.get("machine") == here and is_alive(worker.status):
            os.kill(int(worker.status["pid"]), signal.SIGTERM)


def _wait(folder: Path, asked: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """Wait for these workers to stop; returns those that have not in time."""
    names, end = {worker.name for worker in asked}, time.monotonic() + PATIENCE_S
    while True:
        left = [worker for worker in list_workers(folder) if worker.name in names and worker.present]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


if __name__ == "__main__":
    run_command(main)
