"""A loss, a weight or a gradient that is not finite fails the run, and the reason names the layer."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_details_common import config

from harness.methods.base import Method, Step
from harness.records.files import read_json
from harness.training.build import build
from harness.training.finite import check_weights, not_finite
from harness.training.loop import TrainingError, train
from harness.training.run import run


def breaking(monkeypatch: pytest.MonkeyPatch, hook: str, at: int, value: float, of: str = "weight") -> None:
    """From now on `hook` of float training breaks one value of layer3 in step `at`, counted from 0."""

    def broken(self: Method, step: Step) -> float:
        parameter = step.model.get_submodule("layer3").weight
        assert isinstance(parameter, nn.Parameter)
        if step.index == at:
            tensor = parameter.data if of == "weight" else parameter.grad
            assert tensor is not None
            tensor[1, 2] = value
        return 0.0

    monkeypatch.setattr(f"harness.methods.none.FloatTraining.{hook}", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("at", "when"),
    [
        (0, "in epoch 1, step 2; not finite: weight of layer 'layer3'"),
        (2, "after epoch 1: not finite: weight of layer 'layer3'"),
        (5, "after epoch 2: not finite: weight of layer 'layer3'"),
    ],
)
def test_a_weight(at: int, when: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, "after_step", at, value)
    with pytest.raises(TrainingError) as failed:
        run(config("none"), tmp_path)
    assert str(failed.value).endswith(when)
    assert read_json(tmp_path / "status.json")["reason"] == f"TrainingError: {failed.value}"
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, "after_backward", 0, value, of="gradient")
    with pytest.raises(TrainingError, match=r"epoch 1, step 2; not finite: weight of layer 'layer3'$"):
        train(build(config("none")), lambda metrics: None)


def test_a_gradient_that_clipping_would_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, "after_backward", 1, math.nan, of="gradient")
    with pytest.raises(TrainingError, match=r"^in epoch 1, step 2: not finite: gradient of weight of layer 'layer3'$"):
        train(build(config("none", train__clip_norm=1.0)), lambda metrics: None)


def test_where_the_loss_of_a_step_is_not_looked_at_the_epoch_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr("harness.training.loop.check_loss", lambda *_: None)
    breaking(monkeypatch, "after_step", 0, math.nan)
    with pytest.raises(TrainingError, match=r"after epoch 1: not finite: weight of layer 'layer1'.* and 7 more$"):
        train(build(config("none")), lambda metrics: None)


def test_what_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not_finite(model) == ""
    model[1].bias.grad = torch.tensor([0.0, math.inf])
    assert not_finite(model) == "not finite: gradient of bias of layer '1'"
    model[1].bias.data[0] = math.nan
    assert not_finite(model) == "not finite: bias of layer '1'"


def test_finite_values_of_which_the_sum_is_not_are_no_reason() -> None:
    model = nn.Linear(2, 2)
    model.weight.data.fill_(3e38)
    check_weights("epoch 1", model)


def test_clipping_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[dict[str, Any]] = []
    for clip in (None, lambda session, largest: nn.utils.clip_grad_norm_(session.model.parameters(), largest)):
        if clip is not None:
            monkeypatch.setattr("harness.training.loop._clip_gradients", clip)
        session = build(config("ste", train__clip_norm=0.1))
        train(session, lambda metrics: None)
        trained.append(session.model.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
