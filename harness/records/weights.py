"""Why weights are not there, and how they are made again: best.safetensors stays behind when records are archived."""

from pathlib import Path

from harness.core.errors import UserError
from harness.records.archive import runs_of
from harness.records.files import read_json
from harness.records.run_directory import RECORD, RunDirectory
from harness.records.sweep_directory import SweepDirectory, sweeps_below


def no_weights(where: Path, what: str) -> UserError:
    """What to say of weights that were not kept, and how to get them. what: is true of `where`.

    where: a run's directory, the folder of a sweep or of an archive, or a root of those.
    """
    path, kept = where.absolute(), "(best.safetensors; see keep_best in a sweep file)"
    if _phase(path) != "tune":
        return UserError(f"{where}: {what} {kept}{_made_again(path)}")
    sweep = SweepDirectory(path.parents[1])
    there = "have theirs" if any(map(_is_kept_final, sweep.runs_named())) else "have none here either"
    lists = f": python -m harness.logs {sweep.path} lists them" if sweep.sweep.exists() else ""
    return UserError(f"{where}: a tuning trial, which kept no weights {kept}; finals {there}{lists}{_made_again(path)}")


def _phase(run: Path) -> str | None:
    """Whether a run of a sweep is a trial ("tune") or a final; None where a folder is no such run with a record."""
    record = read_json(RunDirectory(run).record) if run.parent.name == "runs" else None
    return None if record is None else record["config"].get("phase")


def _is_kept_final(run: Path) -> bool:
    return RunDirectory(run).best.exists() and _phase(run) == "final"


def _made_again(path: Path) -> str:
    """What to add to a message about missing weights; nothing where no run of a sweep has a record."""
    if path.parent.name == "runs" and RunDirectory(path).record.exists():
        named, root = path.name, path.parents[2]
    elif recorded := [sweep for sweep in (SweepDirectory(path), *sweeps_below(path)) if _has_records(sweep)]:
        named, root = "RUN", recorded[0].path.parent
    else:
        return ""
    again = f"python -m harness.repeat {named} --root {root} --dir NEW"
    return f"; archives hold no weights: {again} trains a run again and makes them"


def _has_records(sweep: SweepDirectory) -> bool:
    runs = runs_of(sweep.path)
    return runs.is_dir() and any((run / RECORD).is_file() for run in runs.iterdir())
