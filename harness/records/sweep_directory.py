"""A sweep's folder: the name of every file in it, the entries of its workers, and the sweeps below a root.

sweep.json  cells.json  code.json  data.json  stop.json  storage.json  study.log  launch.log
runs/<run id>/  pretrained/<run id>/  workers/<name>/  slots/<host>/  logs/  components/
runs.zip    of an archive, in place of runs/
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from harness.core.outside import KEPT
from harness.records.files import read_json, write_json
from harness.records.heartbeat import files_clock, is_running, read_status
from harness.records.run_directory import RunDirectory


class SweepDirectory:
    """The files of one sweep, `<root>/<name>/`.

    stop: asks every worker to stop; written by harness.cancel, removed by the next launch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep, self.cells, self.code = path / "sweep.json", path / "cells.json", path / "code.json"
        self.data = path / "data.json"
        self.stop, self.storage = path / "stop.json", path / "storage.json"
        self.journal, self.launch_log, self.archive = path / "study.log", path / "launch.log", path / "runs.zip"
        self.runs, self.pretrained = path / "runs", path / "pretrained"
        self.workers, self.slots, self.logs = path / "workers", path / "slots", path / "logs"
        self.components = path / KEPT

    def lock(self, of: Literal["plan", "launch", "storage", "data"]) -> FileLock:
        """A lock between processes. plan: topping up, choosing, reaping. storage: making a database's tables.

        data: noting which data runs see.
        """
        return FileLock(self.path / f"{of}.lock")

    def slot_lock(self, host: str, slot: str) -> FileLock:
        """Held by the worker that works in a slot of a machine."""
        folder = self.slots / host
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{slot}.lock")

    def run(self, run_id: str) -> RunDirectory:
        """The directory of a run."""
        return RunDirectory(self.runs / run_id)

    def runs_named(self, prefix: str = "") -> list[Path]:
        """The run directories whose name begins with a prefix."""
        return sorted(path for path in self.runs.glob("*") if path.is_dir() and path.name.startswith(prefix))

    def worker(self, name: str) -> "WorkerDirectory":
        """The directory of a worker."""
        return WorkerDirectory(self.workers / name)

    def all_workers(self) -> "list[WorkerDirectory]":
        """The directories of all workers, in the order of their names."""
        return [WorkerDirectory(path) for path in sorted(self.workers.glob("*")) if path.is_dir()]

    def living_workers(self) -> list[str]:
        """The names of the workers that run now, without asking Slurm."""
        now = files_clock(self.path)
        return [worker.path.name for worker in self.all_workers() if is_running(read_status(worker, now))]

    def cell_entries(self) -> list[dict[str, Any]]:
        """The entries of cells.json; none before parameters were first chosen, or when the file is damaged."""
        return list((read_json(self.cells) or {"cells": []})["cells"])


class WorkerDirectory(RunDirectory):
    """The files of one worker: its status.json, as of a run, and what its launch submitted."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.submitted = path / "submitted.json"

    def note_submitted(self, **fields: Any) -> None:
        """Write down that the worker was submitted. Only the worker itself writes its status."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.submitted, fields)


def sweeps_below(root: Path) -> Iterator[SweepDirectory]:
    """The folders directly below a root, in the order of their names, as those of sweeps."""
    return (SweepDirectory(path) for path in sorted(root.glob("*")) if path.is_dir())
