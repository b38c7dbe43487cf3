"""`python -m harness.archive pack RUNS/SWEEP --to DIR`: a finished sweep's records in one small file, and back.

An archive is a folder `DIR/SWEEP` with `sweep.json`, `cells.json` and `runs.zip`: each run's configuration, record and
trials, of final runs also the epochs, of failed ones the reason. It is what a repository or a paper's supplement
holds; `analysis/make_figures.py --root DIR` reads it as it is, and `unpack` makes a sweep of it that launch goes on
with: what has a record is not trained again. The same records give the same bytes.
"""

import argparse
import os
from pathlib import Path

from harness.core.command import run_command
from harness.records.archive import pack, runs_of, unpack
from harness.records.sweep_directory import SweepDirectory


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.archive", description="Keep a finished sweep's records.")
    parser.add_argument("verb", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path, help="of the sweep to pack, or of the archive to unpack")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="DIR/SWEEP is written")
    options = parser.parse_args(arguments)
    made = (pack if options.verb == "pack" else unpack)(Path(os.path.abspath(options.folder)), options.to)
    runs = sum(run.is_dir() for run in runs_of(made).iterdir())
    size = f", {SweepDirectory(made).archive.stat().st_size / 1e6:.1f} MB" if options.verb == "pack" else ""
    print(f"{made}: {runs} runs{size}")
    return 0


if __name__ == "__main__":
    run_command(main)
