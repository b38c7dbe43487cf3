"""`python -m harness.archive pack RUNS/SWEEP --to DIR`: a finished sweep's records in one small file, and back.

An archive is a folder `DIR/SWEEP` with `sweep.json`, `cells.json` and `runs.zip`: each run's configuration, record and
trials, of final runs also the epochs, of failed ones the reason; of pruned ones their epochs. It is what a
repository or a paper's supplement holds; `analysis/make_figures.py --root DIR` reads it as it is, and `unpack` makes a
sweep of it that launch goes on with: what has a record is not trained again. The same records give the same bytes.

`pack --unfinished` takes a sweep with runs left to do, and its queue, to another machine; `unpack --merge` brings back
what was done there.
"""

import argparse
import os
from pathlib import Path

from harness.core.command import run_command
from harness.core.wording import counted
from harness.records.archive import pack, pruned_runs, runs_of, unpack
from harness.records.sweep_directory import SweepDirectory

_USAGE = """python -m harness.archive pack RUNS/SWEEP --to DIR [--unfinished]
       python -m harness.archive unpack ARCHIVES/SWEEP --to DIR [--merge]"""


def _parser() -> argparse.ArgumentParser:
    """No subcommands: options may stand before the verb."""
    about = "Keep a finished sweep's records in one small file, without weights; make a sweep of them again."
    parser = argparse.ArgumentParser(prog="python -m harness.archive", usage=_USAGE, description=about)
    parser.add_argument("verb", choices=("pack", "unpack"))
    parser.add_argument("folder", type=Path, help="of the sweep to pack, or of the archive to unpack")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="DIR/SWEEP is written")
    packing = parser.add_argument_group("options of pack")
    packing.add_argument("--unfinished", action="store_true", help="also a sweep that is not complete, with its queue")
    unpacking = parser.add_argument_group("options of unpack")
    unpacking.add_argument("--merge", action="store_true", help="into the sweep of that name, if it is there")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.merge if options.verb == "pack" else options.unfinished:
        parser.error("--unfinished is for pack, --merge for unpack")
    folder = Path(os.path.abspath(options.folder))
    if options.merge:
        from harness.sweep.merge import merge

        print(f"{options.to / folder.name}: {counted(merge(folder, options.to), 'run')} added")
        return 0
    made = pack(folder, options.to, options.unfinished) if options.verb == "pack" else unpack(folder, options.to)
    runs = sum(run.is_dir() for run in runs_of(made).iterdir())
    size = f", {SweepDirectory(made).archive.stat().st_size / 1e6:.1f} MB" if options.verb == "pack" else ""
    ended = f", {pruned} of them pruned" if (pruned := pruned_runs(made)) else ""
    print(f"{made}: {counted(runs, 'run')}{ended}{size}")
    return 0


if __name__ == "__main__":
    run_command(main)
