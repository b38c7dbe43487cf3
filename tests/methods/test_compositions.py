"""Stacks of methods that the papers combine: each part has its effect, and a resume is bit for bit."""

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import Stopped
from harness.methods import find
from harness.records.schema import TRAIN_LOSS
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train
from harness.training.session import Session

VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2, "patch": 2}
MLP = {"name": "mlp5", "width": 12, "depth": 3}
RESNET = {"name": "resnet18", "width": 4}
STACKS: list[tuple[list[str], dict[str, Any]]] = [
    (["lsq", "dampening"], MLP),
    (["qkr", "statsq", "cga"], VIT),
    (["satnl", "symreg"], MLP),
    (["oscillation", "bn_reestimation"], RESNET),
]
each_stack = pytest.mark.parametrize(("methods", "model"), STACKS, ids=["+".join(methods) for methods, _ in STACKS])


def config(methods: list[str], model: dict[str, Any]) -> RunConfig:
    """Two epochs of three steps on digits, at target 3, every method with what shows its effect."""
    return complete(
        {
            "methods": [find(name).tiny_config().model_dump() for name in methods],
            "target_bit": 3,
            "model": model,
            "data": {"name": "digits", "train_fraction": 0.1},
            "train": {"epochs": 2, "batch_size": 40, "learning_rate": 5e-3, "precision": "fp32"},
            "deploy": {"bits": [3, 8], "scale": "keep_range"},
            "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
        }
    )


def trained(methods: list[str], model: dict[str, Any]) -> Session:
    session = build(config(methods, model))
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    assert all(0 < line[TRAIN_LOSS] < 10 for line in lines)
    return session


@each_stack
def test_every_part_has_its_effect(methods: list[str], model: dict[str, Any]) -> None:
    """Leaving any one of them out gives another network, or the same one deployed otherwise."""
    session = trained(methods, model)
    images = session.dataset.normalized(session.dataset.val.images[:64])
    outputs = session.evaluator.deployed(session.model, 3)(images)
    assert bool(outputs.isfinite().all())
    for left_out in methods:
        rest = [name for name in methods if name != left_out]
        other = trained(rest, model)
        assert not torch.equal(other.evaluator.deployed(other.model, 3)(images), outputs), left_out


@each_stack
def test_resumed_equals_uninterrupted(methods: list[str], model: dict[str, Any], tmp_path: Path) -> None:
    whole = trained(methods, model)
    for allowed in (2, 2, 99):
        session = build(config(methods, model))
        checkpoint.restore(tmp_path / "parts.pt", session)
        left = itertools.chain([False] * allowed, itertools.repeat(True))
        with suppress(Stopped):
            train(session, lambda metrics: None, lambda left=left: next(left))  # type: ignore[misc]
        checkpoint.save(tmp_path / "parts.pt", session)
    assert session.progress.epoch == 2
    states = session.model.state_dict(), whole.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    assert session.progress.best_value == whole.progress.best_value
