"""Finding a launched sweep, or a run, from what a user types. Without torch."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.core import yaml_file
from harness.core.errors import UserError, nearest
from harness.records.archive import refuse_archive
from harness.records.files import read_json
from harness.records.heartbeat import read_status, state_of
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import SweepDirectory, sweeps_below


def sweep_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command for a launched sweep, which is named by its file, folder or name, and the root."""
    parser = argparse.ArgumentParser(prog=f"python -m harness.{command}", description=description)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="the file that was launched, its folder or name")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    return parser


def sweep_folder(named: Path, root: Path) -> Path:
    """`<root>/<name>` for a sweep's file or name; a folder itself. Raises UserError for one that was never launched.

    A file, and the folder of a sweep, go before a name.
    """
    if _is_sweep(named):
        folder = named
    elif not named.is_file() and (_is_sweep(root / named) or (not named.exists() and _may_be_name(named))):
        folder = root / named
    elif named.is_dir():
        folder = named
    else:
        name = yaml_file.read(named).get("name")
        if not isinstance(name, str):
            raise UserError(f"{named}: name: missing, so its results cannot be found")
        folder = root / name
    if not _is_sweep(folder):
        known = [files.path.name for files in sweeps_below(root) if files.sweep.exists()]
        there = f" (launched there: {', '.join(known)})" if known else ""
        soon = "a launch that still checks its networks has written nothing yet"
        where = f"{nearest(folder.name, known)}{there}; see --root ({soon})"
        raise UserError(f"{folder}: no sweep was launched there{where}")
    refuse_archive(folder)
    return folder


def _is_sweep(folder: Path) -> bool:
    return SweepDirectory(folder).sweep.exists()


def _may_be_name(named: Path) -> bool:
    """Whether a path may be the name of a sweep: a word without the ending of a file."""
    return len(named.parts) == 1 and not named.suffix


def runs_of_many(named: str, root: Path) -> list[str] | None:
    """A line for each run of a sweep (its file, folder or name below the root) or of a cell; None for neither."""
    path, cell = Path(named), None
    if path.suffix in (".yaml", ".yml") or _is_sweep(path) or (named and _is_sweep(root / named)):
        sweeps = [SweepDirectory(sweep_folder(path, root))]
    else:
        sweeps, cell = [files for files in sweeps_below(root) if named in cells_of(files)], named
    if not sweeps:
        return None
    found = [entry for files in sweeps for entry in _entries(files) if cell in (None, entry["cell"])]
    width = max((len(entry["cell"]) for entry in found), default=0)
    lines = [
        f"{entry['run']}  {entry['phase']:<5}  {entry['cell']:<{width}}  {entry['which']:<9}  {entry['state']}"
        for entry in sorted(found, key=lambda entry: (entry["cell"], entry["phase"] == "final", entry["number"]))
    ]
    return lines or [f"{named}: no run has begun"]


def cells_of(files: SweepDirectory) -> list[str]:
    """The ids of a sweep's cells: of those whose parameters are chosen, and of those whose runs have begun."""
    begun = (entry["cell"] for run in files.runs_named() for entry in read_json(RunDirectory(run).trials) or ())
    return list(dict.fromkeys((*(entry["id"] for entry in files.cell_entries()), *begun)))


def _entries(files: SweepDirectory) -> Iterator[dict[str, Any]]:
    """What each run of a sweep is: a run that several cells share counts for each."""
    for path in files.runs_named():
        run = RunDirectory(path)
        config = (read_json(run.config) or {"config": {}})["config"]
        state = state_of(read_status(run))
        for entry in read_json(run.trials) or ():
            final = entry["phase"] == "final"
            number = config.get("seed", -1) if final else entry["trial"]
            which = f"seed {number}" if final else f"trial {number}"
            yield {**entry, "run": path.name, "number": number, "which": which, "state": state}


def _names(files: SweepDirectory) -> list[str]:
    return [path.name for path in (files.path, *files.runs_named())]


def run_folder(named: str, root: Path) -> Path:
    """The directory of a run, by its id or the beginning of it. Raises UserError for none and for several."""
    if Path(named).is_dir():
        if SweepDirectory(Path(named)).sweep.exists():
            raise UserError(f"{named}: a sweep; name one of its runs (`python -m harness.logs {named}` lists them)")
        return Path(named)
    found = [path for sweep in sweeps_below(root) for path in sweep.runs_named(named)]
    names = {path.name for path in found}
    if len(names) > 1:
        raise UserError(f"run {named!r} could be any of {', '.join(sorted(names))}; write more of it")
    if not found:
        known = [name for sweep in sweeps_below(root) for name in (*_names(sweep), *cells_of(sweep))]
        raise UserError(f"run {named!r} is not under {root}{nearest(named, known)}; see --root")
    return found[0]
