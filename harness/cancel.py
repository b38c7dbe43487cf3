"""`python -m harness.cancel SWEEP.yaml`: stop a sweep's workers. Nothing finished is lost; launching goes on."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.cli.find import add_arguments, sweep_folder
from harness.cluster.slurm import NO_ANSWER, QUEUE_TIMEOUT_S
from harness.cluster.workers import WorkerInfo, list_workers
from harness.core.command import run_command
from harness.records.files import write_json
from harness.records.heartbeat import is_alive, process_identity
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import STOP

#: Workers elsewhere look for the request with their heartbeat, and may be in the middle of a long step.
PATIENCE_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status: 1 when a worker has not stopped in time."""
    parser = argparse.ArgumentParser(prog="python -m harness.cancel", description="Stop a sweep's workers.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    folder = sweep_folder(options.sweep, options.root)
    write_json(folder / STOP, {"when": time.time(), "by": process_identity()})
    members = list_workers(folder)
    silent = [member for member in members if member.present and member.why == NO_ANSWER]
    asked = [member for member in members if member.present and member not in silent]
    _ask(folder, asked)
    left = _wait(folder, asked)
    from harness.sweep import plan
    from harness.sweep.queue import load_sweep

    sweep = load_sweep(folder)
    with sweep.lock():
        plan.reap(sweep)
    runs = plan.left(sweep)
    print(
        f"{len(asked) - len(left)} workers stopped; "
        + (f"{runs} runs are left; launch goes on" if runs else "complete")
    )
    if silent:
        print(f"Slurm does not answer: {len(silent)} jobs, if they are there, stop when they see {folder / STOP}")
    for member in left:
        print(f"worker {member.name} ({member.host}, job {member.job_id}) still runs", file=sys.stderr)
    return 1 if left or silent else 0


def _ask(folder: Path, members: Sequence[WorkerInfo]) -> None:
    jobs = sorted({str(member.job_id) for member in members if member.cluster == "slurm"})
    if jobs:
        try:
            subprocess.run(["scancel", *jobs], check=False, timeout=QUEUE_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"scancel: {error}; the workers will see {folder / STOP}", file=sys.stderr)
    here = process_identity()["machine"]
    for member in members:
        if not member.status:  # it never started: nobody else will say what became of it
            write_json(RunDirectory(folder / "workers" / member.name).status, {"state": "cancelled"})
        elif member.cluster == "local" and member.status.get("machine") == here and is_alive(member.status):
            os.kill(int(member.status["pid"]), signal.SIGTERM)


def _wait(folder: Path, asked: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """Those of the workers asked that do not stop in time."""
    names, end = {member.name for member in asked}, time.monotonic() + PATIENCE_S
    while True:
        left = [member for member in list_workers(folder) if member.name in names and member.present]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


if __name__ == "__main__":
    run_command(main)
