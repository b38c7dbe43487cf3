"""What the tests in test_wandb_*.py share."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from wandb_server import API_KEY, WandbServer

from harness.core.errors import Stopped
from harness.records import schema
from harness.tasks.classification import ACCURACY
from harness.training.config import RunConfig, complete
from harness.training.run import RunContext, run
from harness.training.wandb_mirror import Mirror

EPOCHS = 4


@contextmanager
def fresh_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that this process's W&B talks to, and nothing of the user who runs the tests."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Mirror, "_ask_again", 0.0)
    wandb.teardown()  # what an earlier test made W&B learn from its environment
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()


def config(**changes: Any) -> RunConfig:
    """Four short epochs, with a checkpoint after every step."""
    raw: dict[str, Any] = {
        "methods": "ste",
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 8},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": EPOCHS, "batch_size": 40},
        "deploy": {"bits": [2, 8], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "online", "checkpoint_every_s": 0.0},
    }
    for key, value in changes.items():
        raw["runtime"][key] = value
    return complete(raw)


def run_until(epoch: int, wanted: RunConfig, directory: Path) -> None:
    """Carry out a run and stop it after an epoch, as a scheduler's warning does."""
    seen: list[int] = []
    with pytest.raises(Stopped):
        run(wanted, directory, RunContext(lambda metrics: seen.append(metrics[schema.EPOCH]), lambda: epoch in seen))


def sync(directory: Path, *options: str) -> str:
    """The user's command, on all that the run left behind, in their shell's order."""
    folders = sorted(map(str, directory.glob("wandb/*run-2*")))
    command = [sys.executable, "-m", "wandb", "sync", *options, *folders]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def epochs(server: WandbServer, run_id: str) -> list[int]:
    return [row[schema.EPOCH] for row in server.runs[run_id].history]


def assert_complete(server: WandbServer, wanted: RunConfig, directory: Path) -> None:
    """The server has what metrics.jsonl and record.json have: each epoch once, in order, with its numbers."""
    received = server.runs[wanted.run_id()]
    ours = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row[schema.EPOCH] for row in ours] == list(range(1, EPOCHS + 1))
    for row, line in zip(received.history, ours, strict=True):
        counts = line.pop(schema.THRESHOLD_HISTOGRAM)
        edges = list(schema.THRESHOLD_EDGES)
        assert row[schema.THRESHOLD_HISTOGRAM] == {"_type": "histogram", "values": counts, "bins": edges}
        layers = [value for name, value in line.items() if name.startswith(schema.LAYER_PREFIX)]
        assert row[schema.LAYER_PROFILE]["values"] == layers
        assert {key: row[key] for key in line} == line
    record = json.loads((directory / "record.json").read_text())
    assert received.summary["best_epoch"] == record["best_epoch"]
    for name, value in schema.as_metrics(record["rows"], ACCURACY).items():
        if name.startswith("test/"):
            assert received.summary[name] == value
    del record["config"]
    assert json.loads(received.summary[schema.RECORD]) == {**record, "labels": {}}
    assert received.exit_code == 0


def holds_key(directory: Path) -> list[Path]:
    """The files that hold the API key."""
    return [path for path in directory.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()]
