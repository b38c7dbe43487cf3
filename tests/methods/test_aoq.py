"""AOQ: its schedule at the epochs of the released code, what moves in which stage, and the pull."""

import itertools
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from aoq_common import network, prepared, quantizers, session_of
from pydantic import ValidationError
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.core.config_base import QuantizerConfig
from harness.methods.aoq import AllowingOscillation
from harness.methods.base import Context, Step
from harness.quantization import DecoupledQuantizer
from harness.quantization.layers import QuantLayer, attach
from harness.training.loop import first_eligible_epoch, train
from harness.training.sections import TrainConfig

# The schedule


@pytest.mark.parametrize("steps_an_epoch", [1, 3, 7])
def test_the_grid_shrinks_at_the_epochs_of_the_released_code(steps_an_epoch: int) -> None:
    model = network()
    method = prepared(model)
    seen = []
    for index in range(250 * steps_an_epoch):
        method.on_step_start(Step(index, 250 * steps_an_epoch, model))
        (value,) = {float(quantizer.shrink) for quantizer in quantizers(model)}
        epoch = min(50, index // steps_an_epoch)
        assert value == pytest.approx(0.65 + 0.35 * math.cos(2 * math.pi * (epoch - epoch % 5) / 100), rel=1e-6), index
        seen.append(value)
    assert len(set(seen)) == 11
    assert seen[0] == 1
    assert seen[50 * steps_an_epoch - 1] > seen[50 * steps_an_epoch] == seen[-1] == pytest.approx(0.3)
    assert seen[5 * steps_an_epoch - 1] == 1 > seen[5 * steps_an_epoch]


def test_settings_of_the_schedule() -> None:
    method = prepared(network(), explore=0.5, settle=0.5, shrink_to=0.2, updates=2)
    assert [method.shrink_at(i, 8) for i in range(9)] == pytest.approx([1, 1, 0.6, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2])
    at_once = prepared(network(), explore=0.0)
    assert at_once.shrink_at(0, 8) == pytest.approx(0.3)
    short = prepared(network(), explore=0.1)
    for total in range(1, 60):
        done = [min(10, 100 * index // total) for index in range(total)]
        wanted = [0.65 + 0.35 * math.cos(math.pi * each / 10) for each in done]
        assert [short.shrink_at(index, total) for index in range(total)] == pytest.approx(wanted, abs=1e-12)


def test_a_stage_begins_at_its_step_though_a_product_of_floats_is_beyond() -> None:
    assert 0.07 * 100 > 7
    model = network()
    method = prepared(model, explore=0.07, settle=0.07, updates=7, pull=1.0)
    wanted = [0.65 + 0.35 * math.cos(math.pi * done / 7) for done in range(8)]
    assert [method.shrink_at(index, 100) for index in range(8)] == pytest.approx(wanted)
    assert method.penalty(Step(6, 100, model)) == 0.0
    assert method.penalty(Step(7, 100, model)) > 0


def test_stages_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"settle \(0.1\) must not come before explore \(0.2\) ends"):
        AllowingOscillation.Config(settle=0.1)
    AllowingOscillation.Config(explore=0.6)


def test_an_epoch_before_the_last_stage_cannot_be_best() -> None:
    assert prepared(network()).selection_start == 0.6
    assert prepared(network(), settle=0.7).selection_start == 0.7
    assert prepared(network(), pull=0.0).selection_start == 0.2, "the last stage is the second"
    for epochs in range(1, 40):
        first = first_eligible_epoch(TrainConfig(epochs=epochs), [prepared(network())])
        assert first == 6 * epochs // 10 + 1 <= epochs, "the first epoch all of which is in stage 3, or the last one"
    session = session_of(["aoq"], 1)
    train(session, lambda metrics: None)
    assert session.progress.best_epoch == 1


# What moves when


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_what_moves_in_which_stage(optimizer: str) -> None:
    """Five epochs of three steps: stage 1 for three steps, 2 for six, 3 for six. Weight decay must not shrink steps."""
    session = session_of(["aoq"], train={"optimizer": optimizer, "weight_decay": 0.5, "learning_rate": 1e-2})
    own = quantizers(session.model)
    starts = [(q.threshold_step.clone(), q.level_step.detach().clone()) for q in own]
    seen: list[Any] = []

    def look() -> bool:  # before each step
        seen.append([(float(q.shrink), q.threshold_step.clone(), q.level_step.detach().clone()) for q in own])
        if len(seen) in (2, 3, 4):
            assert all(q.level_step.grad is None for q in own), "no gradient, so none in its norm and in averages"
        return False

    train(session, lambda metrics: None, look)
    look()
    assert len(seen) == 16
    for index, state in enumerate(seen):
        for (shrink, thresholds, levels), (first, start) in zip(state, starts, strict=True):
            assert torch.equal(thresholds, first)
            assert torch.equal(levels, start) == (index <= 3), "three steps of stage 1, then it moves"
            assert shrink == pytest.approx(0.3) or index <= 3
    for before, after in itertools.pairwise(seen[3:]):
        assert all(not torch.equal(a[2], b[2]) for a, b in zip(before, after, strict=True))
    steps = {id(q.level_step) for q in own}
    (group,) = [g for g in session.optimizer.param_groups if any(id(p) in steps for p in g["params"])]
    assert {id(p) for p in group["params"]} == steps
    assert group["weight_decay"] == 0
    if optimizer != "sgd":
        counts = [float(session.optimizer.state[q.level_step]["step"]) for q in own]
        assert counts == [12.0] * len(own), "its averages begin with the second stage"


def test_the_level_steps_learning_rate_and_floor() -> None:
    session = session_of([{"name": "aoq", "step_learning_rate": 0.5}])
    steps = {id(q.level_step) for q in quantizers(session.model)}
    rates = {g["lr"] for g in session.optimizer.param_groups if any(id(p) in steps for p in g["params"])}
    assert rates == {0.5 * 3e-3}
    model = network()
    method = prepared(model)
    with torch.no_grad():
        for quantizer in quantizers(model):
            quantizer.level_step.fill_(-3.0)
    method.after_step(Step(5, 10, model))
    assert [float(q.level_step.detach()) for q in quantizers(model)] == pytest.approx([1e-5] * 2)


def test_metrics() -> None:
    model = network()
    method = prepared(model)
    method.on_step_start(Step(50, 250, model))
    with torch.no_grad():
        for factor, quantizer in zip((2.0, 5.0), quantizers(model), strict=True):
            quantizer.level_step.mul_(factor)
    assert method.metrics() == {"aoq/shrink": pytest.approx(0.3), "aoq/level_ratio": pytest.approx(3.5)}


# The pull


def test_the_pull_by_hand() -> None:
    model = network()
    method = prepared(model, pull=0.7)
    method.on_step_start(Step(60, 100, model))
    with torch.no_grad():
        for quantizer in quantizers(model):
            quantizer.level_step.mul_(3.0)  # targets are of thresholds, not of levels
    for index in (0, 19, 20, 59):
        assert method.penalty(Step(index, 100, model)) == 0.0
    penalty = method.penalty(Step(60, 100, model))
    penalty.backward()
    total = 0.0
    for layer in attach(model).values():
        weight = layer.weight.detach().double().numpy()
        step = 0.3 * np.std(weight, ddof=1)
        codes = np.clip(np.floor(weight / step), -2, 1)
        assert np.abs(weight).max() > 2 * step, "weights beyond the grid are drawn back too"
        off = weight - step * (codes + 0.5)
        norm = math.sqrt(float((off**2).sum()))
        total += 0.7 * norm
        assert layer.weight.grad is not None
        np.testing.assert_allclose(layer.weight.grad.numpy(), 0.7 * off / norm, rtol=2e-5, atol=1e-7)
        assert layer.weight_quantizer.level_step.grad is None  # type: ignore[union-attr]
    assert float(penalty.detach()) == pytest.approx(total, rel=1e-6)


def test_the_pull_per_channel_is_one_norm_a_layer() -> None:
    model = network()
    method = prepared(model, 3, {"quantizer": QuantizerConfig(granularity="channel")}, pull=1.0)
    total = 0.0
    for layer, quantizer in zip(attach(model).values(), quantizers(model), strict=True):
        assert quantizer.threshold_step.shape == (len(layer.weight), *[1] * (layer.weight.dim() - 1))
        squares = 0.0
        for channel in layer.weight.detach().double().numpy():
            step = np.std(channel, ddof=1) / 2
            squares += float(((channel - step * (np.clip(np.floor(channel / step), -4, 3) + 0.5)) ** 2).sum())
        total += math.sqrt(squares)
    assert float(method.penalty(Step(9, 10, model)).detach()) == pytest.approx(total, rel=1e-5)


def test_weights_at_their_centres_are_left_alone_and_never_nan() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    method = prepared(model, pull=1.0)
    with torch.no_grad():
        model[0].weight.copy_(quantizers(model)[0].centres(model[0].weight))
    penalty = method.penalty(Step(9, 10, model))
    penalty.backward()
    assert float(penalty.detach()) == 0
    assert not model[0].weight.grad.any()  # type: ignore[union-attr]
    nn.init.zeros_(model[0].weight)
    method.penalty(Step(9, 10, model)).backward()
    assert bool(model[0].weight.grad.isfinite().all())  # type: ignore[union-attr]


def test_which_weights_are_pulled() -> None:
    shared, again, frozen, excluded = (nn.Linear(6, 6, bias=False) for _ in range(4))
    again.weight = shared.weight
    model = nn.Sequential(shared, again, frozen, excluded)
    frozen.weight.requires_grad_(False)
    method = prepared(model, 3, {"exclude": ("3",)}, pull=1.0)
    alone = nn.Sequential(deepcopy(shared))
    one = AllowingOscillation(AllowingOscillation.Config(pull=1.0), Context(target_bit=3))
    alone[0] = nn.Linear(6, 6, bias=False)
    alone[0].load_state_dict({"weight": shared.weight.detach()})
    one.prepare(alone, NO_DATA)
    penalty, expected = method.penalty(Step(9, 10, model)), one.penalty(Step(9, 10, alone))
    assert isinstance(penalty, Tensor)
    assert torch.equal(penalty, expected)  # type: ignore[arg-type]
    assert not isinstance(excluded, QuantLayer)
    shared.weight.requires_grad_(False)
    assert method.penalty(Step(9, 10, model)) == 0.0


def test_the_effective_weight_is_what_is_fitted_and_pulled() -> None:
    session = session_of([{"name": "satnl", "kappa_unit": "std"}, {"name": "aoq", "pull": 1.0, "explore": 0.0}])
    method: Any = session.methods[1]
    total = 0.0
    for layer in attach(session.model).values():
        weight = layer.weight_transform(layer.weight).detach()
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, DecoupledQuantizer)
        assert float(quantizer.threshold_step) == pytest.approx(float(weight.std()) / 2, rel=1e-6)
        total += float((weight - quantizer.centres(weight)).norm())
    assert float(method.penalty(Step(14, 15, session.model)).detach()) == pytest.approx(total, rel=1e-6)
