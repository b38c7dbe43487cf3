"""Dampening: its penalty by hand, where it stops oscillation, its schedule, and its stacks."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from toy_model import NO_DATA, Toy, flip_rate

from harness.core.config_base import QuantizerConfig
from harness.methods.base import Context, Method, Step
from harness.methods.dampening import Dampening, distance
from harness.quantization import ClippedQuantizer, LSQQuantizer, WeightQuantizer
from harness.quantization.layers import attach
from harness.quantization.slots import SlotTakenError
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train


def dampening(strength: float = 1.0, start: float = 0.0, bits: int = 4, **context: Any) -> Dampening:
    return Dampening(Dampening.Config(strength=strength, start=start), Context(target_bit=bits, **context))


def lsq(step: float, bits: int = 3) -> LSQQuantizer:
    quantizer = LSQQuantizer(bits)
    quantizer.learned_step, quantizer.fitted = nn.Parameter(torch.tensor(step)), True
    return quantizer


def run_config(methods: list[Any], model: dict[str, Any] | None = None, **more: Any) -> Any:
    """Two epochs of three steps on digits."""
    raw: dict[str, Any] = {
        "methods": methods,
        "target_bit": 3,
        "model": model or {"name": "mlp5", "width": 16},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 40, "learning_rate": 1e-2, "precision": "fp32"},
        "deploy": {"bits": [2, 3, 4], "scale": "keep_step"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return complete(raw | more)


@pytest.mark.parametrize(
    "rate", [pytest.param(0.003, marks=pytest.mark.slow), 0.01, pytest.param(0.03, marks=pytest.mark.slow)]
)
def test_without_it_a_weight_oscillates_in_2d_of_all_steps(rate: float) -> None:
    distances = [0.1, 0.2, 0.3, 0.4]
    codes = Toy(distances, start=0.45).train([], 3000, rate)
    torch.testing.assert_close(flip_rate(codes[1000:]), 2 * torch.tensor(distances), atol=0.01, rtol=0)
    torch.testing.assert_close(codes[1000:].mean(0), torch.tensor(distances), atol=0.01, rtol=0)


@pytest.mark.parametrize("d", [0.2, pytest.param(0.4, marks=pytest.mark.slow)])
def test_oscillation_stops_if_and_only_if_the_strength_exceeds_d(d: float) -> None:
    for factor in (0.95, 1.05):
        toy, strength = Toy([d, 3 + d, -d], start=0.0), factor * d
        with torch.no_grad():
            toy.layer.weight.copy_(torch.tensor([[0.49], [3.49], [-0.49]]))
        codes = toy.train([dampening(strength)], 1500, 0.03, total=1)
        late = flip_rate(codes[900:])
        if factor < 1:
            assert bool((late > 0.005).all()), late
        else:
            assert not late.any()
            reached = toy.layer.weight.detach().flatten()
            expected = torch.tensor([0.0, 3.0, 0.0]) + torch.tensor([d, d, -d]) / (2 * strength)
            torch.testing.assert_close(reached, expected, atol=1e-3, rtol=0)


def test_the_penalty_by_hand() -> None:
    weight = torch.tensor([[0.3, -0.2, 0.9], [1.2, 0.05, -5.0]], requires_grad=True)
    quantizer = lsq(0.5, bits=2)  # codes -1, 0, 1: the range is [-0.5, 0.5]
    off = torch.tensor([[0.2, 0.2, 0.0], [0.0, -0.05, 0.0]])  # q - w inside the range, nothing outside
    values = {"sum": off.square().sum(), "mean": off.square().mean(), "kernel_mean": off.square().mean(1).sum()}
    share = {"sum": 1.0, "mean": 1 / 6, "kernel_mean": 1 / 3}
    for aggregation, value in values.items():
        found = distance(weight, quantizer, aggregation)  # type: ignore[arg-type]
        by_weight, by_step = torch.autograd.grad(found, (weight, quantizer.learned_step))
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(by_weight, -2 * share[aggregation] * off)
        assert float(by_step) == 0, "of a weight outside, both sides are the same bound"


@pytest.mark.parametrize("aggregation", ["kernel_mean", "mean", "sum"])
def test_a_convolution_weight_is_aggregated_over_its_kernels(aggregation: str) -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    quantizer = lsq(0.7, bits=8)
    squares = (quantizer(weight) - weight).detach().square()
    by_hand = {"kernel_mean": squares.sum() / 12, "mean": squares.sum() / 48, "sum": squares.sum()}
    torch.testing.assert_close(distance(weight, quantizer, aggregation), by_hand[aggregation])  # type: ignore[arg-type]


def test_layers_add_up_and_a_clipped_default_leaves_what_is_outside_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 5))
    method = dampening(2.0, bits=2, quantizer=QuantizerConfig(range="mse"))
    method.prepare(model, NO_DATA)
    penalty = method.penalty(Step(1, 1, model))
    assert isinstance(penalty, torch.Tensor)
    penalty.backward()
    total = 0.0
    for layer in model:
        quantizer = ClippedQuantizer(2).fit(layer.weight)
        weight, step = layer.weight.detach(), float(quantizer.step(layer.weight.detach()))
        outside = weight.abs() > step
        assert bool(outside.any())
        off = (quantizer(weight) - weight).masked_fill(outside, 0.0)
        torch.testing.assert_close(layer.weight.grad, -4.0 * off / weight.shape[1])
        total += float(2.0 * off.square().mean(1).sum())
    assert float(penalty.detach()) == pytest.approx(total, rel=1e-5)


def test_the_strength_rises_by_a_cosine_after_a_quarter() -> None:
    method = dampening(0.8, start=0.25)
    assert [method.strength_at(index, 100) for index in (0, 10, 25)] == [0.0, 0.0, 0.0]
    for index in (26, 50, 62, 99):
        expected = 0.8 + 0.5 * (0 - 0.8) * (1 + math.cos(math.pi * (index - 25) / 75))
        assert method.strength_at(index, 100) == pytest.approx(expected)
    assert method.strength_at(100, 100) == method.strength_at(999, 100) == pytest.approx(0.8)


@pytest.mark.parametrize("below", ["lsq", "ste"])
def test_strength_zero_is_the_run_without_it_and_more_brings_weights_to_the_grid(below: str) -> None:
    stacks: dict[str, list[Any]] = {
        "without": [below],
        "zero": [below, {"name": "dampening", "strength": 0.0}],
        "some": [below, {"name": "dampening", "strength": 30.0, "start": 0.0}],
        "before": [{"name": "dampening", "strength": 30.0, "start": 0.0}, below],
    }
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in stacks}
    sessions = {name: build(run_config(methods)) for name, methods in stacks.items()}
    for name, session in sessions.items():
        train(session, lines[name].append)
    weights = {name: session.model.state_dict() for name, session in sessions.items()}
    assert lines["zero"] == lines["without"]
    assert all(torch.equal(weights["zero"][key], value) for key, value in weights["without"].items())
    assert all(torch.equal(weights["before"][key], value) for key, value in weights["some"].items())
    assert lines["some"][-1]["train/penalty"] > 0
    far = {name: total_distance(session) for name, session in sessions.items()}
    assert far["some"] < 0.5 * far["without"]


@torch.no_grad()
def total_distance(session: Any) -> float:
    layers = attach(session.model).values()
    return sum(float(distance(layer.weight, layer.weight_quantizer, "sum")) for layer in layers)  # type: ignore[arg-type]


class Stepless(WeightQuantizer):
    """A quantizer of codes without a step."""


@pytest.mark.parametrize("present", [nn.Tanh(), Stepless(3)])
def test_what_has_no_step_is_refused(present: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    attach(model, weight_quantizer=lambda layer: present)
    with pytest.raises(SlotTakenError, match=rf"'dampening' .* {type(present).__name__} of layer '0' .*whole steps"):
        method = dampening()
        method.prepare(model, NO_DATA)
        method.prepared(model)


def test_a_quantizer_that_comes_later_is_checked_too() -> None:
    model, method = nn.Sequential(nn.Linear(2, 2)), dampening()
    method.prepare(model, NO_DATA)
    attach(model, weight_quantizer=lambda layer: Stepless(3))
    with pytest.raises(SlotTakenError, match="Stepless"):
        method.prepared(model)


def test_alone_it_leaves_the_slots_empty() -> None:
    session = build(run_config(["dampening"]))
    assert not any(hasattr(layer.weight_quantizer, "bits") for layer in attach(session.model).values())
    assert isinstance(session.methods[0], Method)
