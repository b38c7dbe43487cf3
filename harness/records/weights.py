"""How weights that are not there are made again: a run's best.safetensors stays behind when records are archived."""

from pathlib import Path

from harness.records.archive import runs_of
from harness.records.run_directory import RECORD, RunDirectory
from harness.records.sweep_directory import SweepDirectory, sweeps_below


def made_again(where: Path) -> str:
    """What to add to a message about missing weights; nothing where no run of a sweep has a record.

    where: a run's directory, the folder of a sweep or of an archive, or a root of those.
    """
    path = where.absolute()
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
