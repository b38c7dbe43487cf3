"""The run directory: the truth about a run. harness/README.md says what each file holds.

Every file that another process may read is written aside, flushed to disk and renamed.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.core.errors import Stopped, UserError
from harness.core.outside import KEPT
from harness.records.files import read_json, written_aside
from harness.records.schema import EPOCH

#: States in which a run needs nothing more.
FINISHED = ("done", "failed", "pruned")
#: Names of files that are also read inside an archive.
RECORD, TRIALS = "record.json", "trials.json"


class RunDirectory:
    """The files of one run. pretrained: the float network that a run by hand starts from, a run directory itself.

    components: files from outside that it needs, of a run by hand; a sweep keeps those of its runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.status = path / "config.json", path / "status.json"
        self.record, self.trials = path / RECORD, path / TRIALS
        self.metrics, self.checkpoint = path / "metrics.jsonl", path / "checkpoint.pt"
        self.best, self.log, self.pretrained = path / "best.safetensors", path / "log.txt", path / "pretrained"
        self.outcomes, self.components = path / "outcomes.json", path / KEPT

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch. Values that are not finite are left out: JSON has none."""
        finite = {key: value for key, value in line.items() if not isinstance(value, float) or abs(value) < 1e300}
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def flush_metrics(self) -> None:
        """Flush the epochs so far to disk; call it before writing a checkpoint that continues after them."""
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The epochs in order; of an epoch written twice the last counts, an incomplete line is skipped."""
        epochs: dict[int, dict[str, Any]] = {}
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict) and EPOCH in value:
                epochs[value[EPOCH]] = value
        return [epochs[epoch] for epoch in sorted(epochs)]

    def finished(self) -> dict[str, Any]:
        """The record. Raises UserError for a run that has none."""
        record: dict[str, Any] | None = read_json(self.record)
        if record is None:
            raise UserError(f"{self.path}: no finished run (there is no record.json to read)")
        return record

    def keep_metrics_until(self, epoch: int) -> None:
        """Drop the epochs after `epoch`, which a resumed run is about to repeat."""
        kept = [line for line in self.read_metrics() if line[EPOCH] <= epoch]
        if kept or self.metrics.exists():
            with written_aside(self.metrics) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def lock(self) -> FileLock:
        """The lock of the process that works on the run."""
        return FileLock(self.path / "run.lock")

    @contextmanager
    def locked(self, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Hold the run's lock. Raises Stopped while waiting for it, once `should_stop()`."""
        lock = self.lock()
        while not lock.is_locked:
            if should_stop():
                raise Stopped
            with suppress(Timeout):
                lock.acquire(timeout=1)
        try:
            yield
        finally:
            lock.release()
