"""The loop's own rules: learning rates, patience, selection, clipping, batches, parameter groups, failures."""

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from training_details_common import Spy, config, same

from harness.core.errors import Stopped
from harness.methods.base import Method, Step
from harness.records import schema
from harness.training import checkpoint
from harness.training.build import build
from harness.training.loop import first_eligible_epoch, learning_rate_factor, out_of_patience, train
from harness.training.sections import TrainConfig
from harness.training.session import Progress, Session


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Learning rate


def test_constant_learning_rate() -> None:
    assert [learning_rate_factor(step, 10, 5, TrainConfig()) for step in range(10)] == [1.0] * 10


def test_warm_up_then_cosine() -> None:
    settings = TrainConfig(schedule="cosine", warmup_epochs=0.5)
    factors = [learning_rate_factor(step, 20, 8, settings) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)], rel=1e-12)
    assert 0 < factors[-1] < 0.02
    assert factors[12] == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_longer_than_training(schedule: Any) -> None:
    settings = TrainConfig(schedule=schedule, warmup_epochs=100)
    assert [learning_rate_factor(step, 4, 2, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_loop_uses_the_factors_also_after_a_checkpoint(tmp_path: Path) -> None:
    seen: list[float] = []

    class Rates(Spy):
        def after_step(self, step: Step) -> None:
            seen.append(session.optimizer.param_groups[0]["lr"])

    wanted = config("none", train__schedule="cosine", train__warmup_epochs=1)
    session = build(wanted)
    session.methods.append(Rates())
    train(session, lambda metrics: None)
    factors = [learning_rate_factor(step, 6, 3, wanted.train) for step in range(6)]
    assert seen == [1e-3 * factor for factor in factors]
    seen.clear()
    for allowed in (2, 3, 9):
        left = iter([False] * allowed + [True] * 9)
        session = build(wanted)
        checkpoint.restore(tmp_path / "checkpoint.pt", session)
        session.methods.append(Rates())
        try:
            train(session, lambda metrics: None, lambda left=left: next(left))  # type: ignore[misc]
        except Stopped:
            session.methods.pop()
            checkpoint.save(tmp_path / "checkpoint.pt", session)
    assert seen == [1e-3 * factor for factor in factors]


# Patience and selection


def staged(start: float) -> list[Method]:
    return [Spy(), Spy(start)]


@pytest.mark.parametrize(
    ("start", "epochs", "first"),
    [(0.0, 10, 1), (0.5, 10, 6), (0.25, 10, 3), (0.99, 10, 10), (1.0, 10, 10), (0.5, 1, 1), (0.29, 100, 30)],
)
def test_first_eligible_epoch(start: float, epochs: int, first: int) -> None:
    assert first_eligible_epoch(TrainConfig(epochs=epochs), staged(start)) == first


def test_patience() -> None:
    settings = TrainConfig(epochs=100, patience=3)
    assert [out_of_patience(Progress(epoch=e, best_epoch=2), settings, []) for e in range(2, 7)] == [False] * 3 + [
        True
    ] * 2
    assert not out_of_patience(Progress(epoch=99), TrainConfig(epochs=100), [])
    # eligible from epoch 51 on: epochs before do not count
    never = [out_of_patience(Progress(epoch=e), settings, staged(0.5)) for e in (10, 50, 52, 53)]
    assert never == [False, False, False, True]


def with_values(session: Session, values: list[float]) -> None:
    """Let the monitored value of each epoch be the given one."""
    left = iter(values)

    class Fixed:
        def rows(self, model: nn.Module, phase: str, split: str, *chosen: Any) -> list[dict[str, Any]]:
            value = next(left)
            bits = [each.plain for each in session.config.evaluated_points]
            return [dict(zip(schema.ROW, (phase, split, "rtn", "s", b, value, 1.0, 1), strict=True)) for b in bits]

    session.evaluator = Fixed()  # type: ignore[assignment]


def test_training_stops_and_the_best_epoch_is_kept() -> None:
    session = build(config("none", train__epochs=50, train__patience=2))
    with_values(session, [0.1, 0.5, 0.5, 0.4, *[0.9] * 50])
    after: list[dict[str, Tensor]] = []
    train(session, lambda metrics: after.append(weights(session.model)))
    progress = session.progress
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (4, 2, 0.5), "the earlier of two equals"
    assert same(progress.best_state, after[1])
    assert not same(progress.best_state, after[3])


def test_early_epochs_of_a_staged_method_cannot_be_best() -> None:
    session = build(config("none", train__epochs=4, train__patience=1))
    session.methods.append(Spy(0.5))
    with_values(session, [0.9, 0.9, 0.1, 0.3])
    train(session, lambda metrics: None)
    assert (session.progress.epoch, session.progress.best_epoch, session.progress.best_value) == (4, 4, 0.3)
