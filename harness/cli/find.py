"""Finding a launched sweep, or a run, from what a user types. Without torch."""

import argparse
from pathlib import Path

from harness.core import yaml_file
from harness.core.errors import UserError, nearest
from harness.records.archive import refuse_archive
from harness.records.sweep_directory import SweepDirectory, sweeps_below


def sweep_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command for a launched sweep, which is named by its file, or its folder, and the root."""
    parser = argparse.ArgumentParser(prog=f"python -m harness.{command}", description=description)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="the file that was launched, or its folder")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    return parser


def sweep_folder(named: Path, root: Path) -> Path:
    """`<root>/<name>` for a sweep's file; a folder itself. Raises UserError for a sweep that was never launched."""
    if named.is_dir():
        folder = named
    else:
        name = yaml_file.read(named).get("name")
        if not isinstance(name, str):
            raise UserError(f"{named}: name: missing, so its results cannot be found")
        folder = root / name
    if not SweepDirectory(folder).sweep.exists():
        known = [files.path.name for files in sweeps_below(root) if files.sweep.exists()]
        there = f" (launched there: {', '.join(known)})" if known else ""
        raise UserError(f"{folder}: no sweep was launched there{nearest(folder.name, known)}{there}; see --root")
    refuse_archive(folder)
    return folder


def run_folder(named: str, root: Path) -> Path:
    """The directory of a run, by its id or the beginning of it. Raises UserError for none and for several."""
    if Path(named).is_dir():
        return Path(named)
    found = [path for sweep in sweeps_below(root) for path in sweep.runs_named(named)]
    names = {path.name for path in found}
    if len(names) > 1:
        raise UserError(f"run {named!r} could be any of {', '.join(sorted(names))}; write more of it")
    if not found:
        known = [path.name for sweep in sweeps_below(root) for path in sweep.runs_named()]
        raise UserError(f"run {named!r} is not under {root}{nearest(named, known)}; see --root")
    return found[0]
