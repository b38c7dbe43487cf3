"""What the tests in test_training_details_*.py share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.methods.base import Context, Method, Step
from harness.training.config import RunConfig, complete


def config(method: str | list[dict[str, Any]] = "ste", **changes: Any) -> RunConfig:
    """Two epochs of three steps on digits; `train__epochs=1` and the like change a key."""
    raw: dict[str, Any] = {
        "methods": method,
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 16},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 40, "precision": "fp32"},
        "deploy": {"bits": [2, 8], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "checkpoint_every_s": 0.0},
    }
    for key, value in changes.items():
        section, _, last = key.rpartition("__")
        (raw[section] if section else raw)[last] = value
    return complete(raw)


def without_codes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a record as an epoch has them: the digest of codes is for records alone."""
    return [{name: value for name, value in row.items() if name != "codes_sha256"} for row in rows]


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left) and left.keys() == right.keys()


class Spy(Method):
    """Notes each hook, and what it sees there."""

    def __init__(self, selection_start: float = 0.0) -> None:
        super().__init__(None, Context())
        self.calls: list[str] = []
        self.steps: list[Step] = []
        self.norms: list[float] = []
        self.selection_start = selection_start

    def on_step_start(self, step: Step) -> None:
        self.calls.append("start")
        self.steps.append(step)
        assert step.task_loss is None

    def penalty(self, step: Step) -> Tensor | float:
        assert step.task_loss is not None
        assert step.task_loss.requires_grad
        self.calls.append("penalty")
        return 0.0

    def after_backward(self, step: Step) -> Tensor | float:
        self.calls.append("backward")
        return 0.0

    def after_step(self, step: Step) -> None:
        self.calls.append("step")
        gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
