"""A task that is no part of the harness: one task file, one data file and one model file, and no edit elsewhere."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from harness.core import registry

TASK = '''
"""Numbers from numbers."""
from harness.core.metric import Metric
from harness.tasks.base import Task


class Regression(Task):
    metric = Metric("mean absolute error", "mae", higher_is_better=False, margin=1, tolerance=0.1, digits=2, low=0)

    def loss(self, outputs, targets, label_smoothing=0.0):
        return (outputs - targets).abs().mean()

    def summed(self, outputs, targets, inputs):
        import torch

        error = (outputs - targets).abs().sum().double()
        return torch.stack([error, error])

    def example_targets(self, inputs, outputs):
        return inputs.new_zeros(len(inputs), outputs)
'''
DATA = '''
"""Diabetes progression from ten measurements of 442 patients; ships with scikit-learn."""
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from harness.data._config import TaskDataConfig


class Config(TaskDataConfig):
    task: ClassVar[str] = "regression"
    name: Literal["diabetes"] = "diabetes"


def check(config):
    pass


def shape(config):
    return (10,), 1


def load(config, seed, device):
    import numpy as np
    import torch

    from harness.data._samples import Pairs, TensorData

    folder = Path(find_spec("sklearn").origin).parent / "datasets/data"
    inputs = torch.from_numpy(np.loadtxt(folder / "diabetes_data_raw.csv.gz")).float()
    targets = torch.from_numpy(np.loadtxt(folder / "diabetes_target.csv.gz")).float()[:, None] / 100
    inputs = ((inputs - inputs[:300].mean(0)) / inputs[:300].std(0)).to(device)
    parts = zip(inputs.split([300, 71, 71]), targets.to(device).split([300, 71, 71]))
    return TensorData(*(Pairs(*part) for part in parts), outputs=1, digest="diabetes")
'''
MODEL = '''
"""A small network of linear layers for rows of numbers."""
from typing import ClassVar

from pydantic import Field

from harness.models.base import TaskModelConfig


class Config(TaskModelConfig):
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    name: str = "rows"
    width: int = Field(16, ge=1, description="hidden units")


def build(config, input_shape, outputs):
    from torch import nn

    return nn.Sequential(nn.Linear(*input_shape, config.width), nn.ReLU(), nn.Linear(config.width, outputs))
'''
FILES = {"tasks/regression.py": TASK, "data/diabetes.py": DATA, "models/rows.py": MODEL}
RAW: dict[str, Any] = {
    "seed": 3,
    "target_bit": 3,
    "methods": ["ste"],
    "model": {"name": "rows"},
    "data": {"name": "diabetes"},
    "train": {"epochs": 2, "batch_size": 100, "learning_rate": 0.01},
    "deploy": {"bits": [2, 3], "scale": "recalibrate"},
    "runtime": {"wandb": "off", "device": "cpu", "threads": 1},
}
SWEEP = """
name: rows
base:
  data: {name: diabetes}
  model: {name: rows}
  train: {epochs: 2, batch_size: 100}
  deploy: {bits: [2, 3], scale: recalibrate}
  runtime: {wandb: "off", device: cpu}
cells:
  - methods: ste
    grid: {target_bit: [2]}
    search: {train.learning_rate: {low: 1e-4, high: 1e-1, log: true}}
  - methods: none
    set: {watch_bit: 2}
    search: {train.learning_rate: {low: 1e-4, high: 1e-1, log: true}}
tune: {trials: 2}
final: {seeds: [0]}
"""


def write(folder: Path) -> None:
    """The three files, below a folder that is laid out as the harness."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find them as if they were in the harness."""
    write(folder)
    own = registry.names
    for name in FILES:
        place, file = name.split("/")
        package = importlib.import_module(f"harness.{place}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder / place)])
        monkeypatch.delitem(importlib.sys.modules, f"harness.{place}.{file[:-3]}", raising=False)  # type: ignore[attr-defined]

    def names(kind: str) -> list[str]:
        further = [path.split("/")[1][:-3] for path in FILES if path.startswith(f"{registry.KINDS[kind]}/")]
        return sorted([*own(kind), *further])

    monkeypatch.setattr(registry, "names", names)
