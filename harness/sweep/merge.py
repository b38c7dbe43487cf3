"""Brings together what was done of one sweep on several machines: `python -m harness.archive unpack --merge`."""

import shutil
import tempfile
from pathlib import Path

from harness.core import outside
from harness.core.errors import UserError
from harness.records.archive import unpack, whole_lines
from harness.records.files import read_json, write_bytes, write_json
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.changes import changed_keys
from harness.sweep.config import SweepConfig, plain


def merge(archive: Path, to: Path) -> int:
    """Add the runs of an archive to the sweep of its name in `to`, which is made if it is not there; returns how many.

    Where the archive's queue is the sweep's own, gone on with elsewhere, the sweep takes it over. Where both went on by
    themselves the sweep's queue stays, and uses those of the runs that it draws too. Raises UserError for what is no
    archive, for another sweep of the same name, and while workers run.
    """
    files = SweepDirectory(to / archive.name)
    if not files.path.exists():
        unpack(archive, to)
        return len(files.runs_named())
    _check_same(archive, files)
    with tempfile.TemporaryDirectory(dir=to, prefix=".merge") as folder:
        there = SweepDirectory(unpack(archive, Path(folder)))
        lacking = [run for run in there.runs_named() if not _is_over(files.run(run.name))]
        for run in lacking:
            shutil.copytree(run, files.run(run.name).path, dirs_exist_ok=True)
        if there.components.is_dir():
            shutil.copytree(there.components, files.components, dirs_exist_ok=True)
        theirs, ours = whole_lines(there.journal), whole_lines(files.journal)
        if len(theirs) > len(ours) and theirs.startswith(ours):
            write_bytes(files.journal, theirs)
            write_json(files.cells, read_json(there.cells))
    return len(lacking)


def _is_over(run: RunDirectory) -> bool:
    return run.record.exists() or (read_json(run.status) or {}).get("state") in ("failed", "pruned")


def _check_same(archive: Path, files: SweepDirectory) -> None:
    outside.look_in(*(SweepDirectory(each).components for each in (files.path, archive)))
    specs = [read_json(path) for path in (files.sweep, SweepDirectory(archive).sweep)]
    ours, theirs = (None if raw is None else plain(SweepConfig.model_validate(raw)) for raw in specs)
    if ours is None or theirs is None:
        raise UserError(f"{files.path if ours is None else archive} holds no sweep (no sweep.json that can be read)")
    if differ := {*changed_keys(ours, theirs)} - {"tune.trials", "final.seeds"}:
        raise UserError(f"{archive} is of another sweep than {files.path}: they differ in {', '.join(sorted(differ))}")
    if workers := files.living_workers():
        run = "workers run" if len(workers) > 1 else "worker runs"
        raise UserError(f"{len(workers)} {run} in {files.path}; harness.cancel stops them")
