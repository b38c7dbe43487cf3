"""A sweep's folder: its workers' entries and the request to stop."""

from pathlib import Path
from typing import Any

from harness.records.files import write_json
from harness.records.heartbeat import files_clock, is_running, read_status
from harness.records.run_directory import RunDirectory


def note_submitted(folder: Path, name: str, **fields: Any) -> None:
    """Write down that a worker was submitted. Its own status is its own business."""
    path = folder / "workers" / name
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "submitted.json", fields)


def living_workers(folder: Path) -> list[str]:
    """The names of the workers that run now, without asking Slurm."""
    now = files_clock(folder)
    statuses = {path.name: read_status(RunDirectory(path), now) for path in sorted((folder / "workers").glob("*"))}
    return [name for name, status in statuses.items() if is_running(status)]


#: In a sweep's folder: asks every worker to stop. Written by harness.cancel, removed by the next launch.
STOP = "stop.json"
