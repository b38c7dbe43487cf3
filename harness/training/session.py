"""A run in memory, and its progress."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from harness.data._samples import TaskData
from harness.methods.base import Method
from harness.oscillation.tracker import OscillationTracker
from harness.tasks.base import Task
from harness.training.compilation import Compiled
from harness.training.config import RunConfig
from harness.training.evaluator import Evaluator
from harness.training.stopwatch import Stopwatch


@dataclass
class Progress:
    """Progress of training; a checkpoint holds it along with the states of model, optimizer, methods and trackers."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    best_epoch: int = 0
    best_value: float = -math.inf  # of `best_state`; means nothing without one
    best_state: dict[str, Tensor] = field(default_factory=dict)
    sums: Tensor | None = None  # (2,) on the device: loss and penalty of the current epoch
    first_histograms: dict[int, list[int]] = field(default_factory=dict)  # the trackers', before the first step

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Session:
    """A run in memory, from `harness.training.build.build`.

    forward: the model, or its compiled version. trackers: by bit-width; the first is the run's own, `tracker`.
    audit: what becomes of the network's parameters (`Audit.summary`).
    """

    config: RunConfig
    dataset: TaskData
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    methods: list[Method]
    optimizer: torch.optim.Optimizer
    trackers: dict[int, OscillationTracker]
    evaluator: Evaluator
    device: torch.device
    precision: str
    planned: Compiled
    audit: dict[str, Any]
    progress: Progress = field(default_factory=Progress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator(self.device)

    @property
    def task(self) -> Task:
        """That of the data set."""
        return self.config.task

    @property
    def tracker(self) -> OscillationTracker:
        """The tracker at the target bit, or at a float run's watch_bit."""
        return next(iter(self.trackers.values()))

    @property
    def compiled(self) -> Compiled:
        """What is compiled in fact: less than planned if compiling the network failed."""
        return "kernels" if getattr(self.forward, "failed", False) else self.planned

    @property
    def steps_per_epoch(self) -> int:
        """See `steps_an_epoch`."""
        return steps_an_epoch(self.config, self.dataset)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, without early stopping."""
        return self.config.train.epochs * self.steps_per_epoch


def steps_an_epoch(config: RunConfig, dataset: TaskData) -> int:
    """Steps per epoch. A last batch of one sample is left out: batch norm cannot normalise it."""
    full, rest = divmod(len(dataset.train), config.train.batch_size)
    return full + (1 if rest > 1 or not full else 0)
