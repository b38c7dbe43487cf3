"""`python -m harness.logs RUN`: what a run printed, and why it failed; of a sweep or a cell, its runs."""

import argparse
import time
from pathlib import Path

from harness.cli.find import run_folder, runs_of_many
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.records.heartbeat import read_status, state_of
from harness.records.run_directory import FINISHED, RunDirectory


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.logs", description="The log of a run, or a list of runs.")
    parser.add_argument(
        "run",
        metavar="RUN",
        help="its id, the beginning of it, or its directory; a sweep (file, folder or name) or a cell: its runs",
    )
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    parser.add_argument("--lines", type=int, metavar="N", help="the last N lines only")
    parser.add_argument("--follow", action="store_true", help="go on until the run is over")
    options = parser.parse_args(arguments)
    if (runs := runs_of_many(options.run, options.root)) is not None:
        if options.follow or options.lines:
            raise UserError(f"{options.run!r} has {len(runs)} runs; --follow and --lines are for one")
        print("\n".join(runs))
        return 0
    files = RunDirectory(run_folder(options.run, options.root))
    if not files.log.exists():
        raise UserError(f"{files.path}: no log (runs made by harness.run print to the terminal instead)")
    with open(files.log, encoding="utf-8", errors="replace") as log:
        lines = log.readlines()
        print("".join(lines[-options.lines :] if options.lines else lines), end="", flush=True)
        while options.follow and (read_status(files) or {}).get("state") not in FINISHED:
            time.sleep(0.5)
            print(log.read(), end="", flush=True)
        print(log.read(), end="")
    print(_end(files))
    return 0


def _end(files: RunDirectory) -> str:
    status = read_status(files) or {}
    text = f"--- {files.path.name}: {state_of(status)}, attempt {status.get('attempt', 0)}"
    text += f" on {status.get('host')}" + (f", job {status['job_id']}" if status.get("job_id") else "")
    return text + (f"\n{status['traceback']}" if "traceback" in status else "")


if __name__ == "__main__":
    run_command(main)
