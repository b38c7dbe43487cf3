"""Pseudo-quantization noise: its size and its draws, where it acts, and its gradient."""

from typing import Any

import pytest
import torch
from test_dampening import run_config
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.core.config_base import QuantizerConfig
from harness.methods.base import Context, Step
from harness.methods.pqn import PseudoQuantizationNoise
from harness.quantization import make_quantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.loop import train

DRAWS = 400
QUANTIZERS = [QuantizerConfig(), QuantizerConfig(granularity="channel"), QuantizerConfig(range="mse")]


def prepared(layer: nn.Module, quantizer: QuantizerConfig = QUANTIZERS[0], seed: int = 3, **settings: Any) -> Any:
    context = Context(target_bit=3, seed=seed, quantizer=quantizer)
    method = PseudoQuantizationNoise(PseudoQuantizationNoise.Config(**settings), context)
    method.prepare(nn.Sequential(layer), NO_DATA)
    return method


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(7, 5)


def noises(linear: Any, method: Any, count: int = DRAWS) -> Tensor:
    """The noise on the weight of a layer in as many steps, (count, O, I)."""
    found = []
    for index in range(count):
        method.on_step_start(Step(index, count, linear))
        with torch.no_grad():
            found.append(linear.quantized_weight() - linear.weight)
    return torch.stack(found)


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["tensor", "channel", "mse"])
@pytest.mark.parametrize(("kind", "deviation"), [("uniform", 12**-0.5), ("gaussian", 0.5)])
def test_noise_of_one_step(kind: str, deviation: float, quantizer: QuantizerConfig) -> None:
    linear = layer()
    step = make_quantizer(quantizer, 3).fit(linear.weight).step(linear.weight).detach()
    found = noises(linear, prepared(linear, quantizer, noise=kind)) / step
    assert float(found.mean(0).abs().max()) < 5 * deviation / DRAWS**0.5
    torch.testing.assert_close(found.std(0), torch.full_like(found[0], deviation), rtol=0.2, atol=0)
    if kind == "uniform":
        assert 0.49 < float(found.max()) <= 0.5001
        assert -0.5001 <= float(found.min()) < -0.49
    pairs = torch.corrcoef(found.flatten(1).T).fill_diagonal_(0)
    assert float(pairs.abs().max()) < 5.5 / DRAWS**0.5, "each weight has noise of its own"


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_noise_of_the_size_of_the_push_weight_by_weight(kind: str) -> None:
    linear = layer()
    distance = (make_quantizer(QUANTIZERS[0], 3)(linear.weight) - linear.weight).detach().abs()
    found = noises(linear, prepared(linear, size="push", noise=kind, strength=2.0))
    torch.testing.assert_close(found.square().mean(0).sqrt(), 2 * distance, rtol=0.2, atol=1e-6)
    assert bool((found.mean(0).abs() <= 10 * distance / DRAWS**0.5 + 1e-6).all())
    largest = linear.weight.abs() == linear.weight.abs().max()
    assert float(found[:, largest].abs().max()) < 1e-6, "a weight on its grid point gets none"


def test_draws_depend_on_seed_and_step_alone() -> None:
    linear, again, other = layer(), layer(), layer()
    methods = [prepared(linear), prepared(again), prepared(other, seed=4)]
    first, third = noises(linear, methods[0], 3)[[0, 2]]
    torch.rand(5)
    methods[1].on_step_start(Step(2, 3, again))
    assert torch.equal((again.quantized_weight() - again.weight).detach(), third)
    assert torch.equal(again.quantized_weight(), again.quantized_weight()), "one step, one noise"
    assert not torch.equal(first, third)
    assert not torch.equal(noises(other, methods[2], 1)[0], first)


def test_evaluation_and_deployment_have_no_noise() -> None:
    linear: Any = layer()
    prepared(linear).on_step_start(Step(0, 1, linear))
    assert not torch.equal(linear.quantized_weight(), linear.weight)
    plain, inputs = layer(), torch.randn(4, 7)
    assert torch.equal(linear.eval()(inputs), plain(inputs))
    assert not linear.weight_quantizer.state_dict(), "a checkpoint holds no noise"
    for bits in (3, 5):
        rounded = round_to_nearest(nn.Sequential(layer()), bits)[0].weight
        assert torch.equal(round_to_nearest(nn.Sequential(linear), bits)[0].weight, rounded)
        linear = layer()
        prepared(linear)


def test_the_gradient_of_the_weight() -> None:
    """1 for every weight, and through s = max|w| / 3 the sum of strength * noise / 3 for the largest."""
    linear: Any = layer().double()
    method = prepared(linear, strength=0.7)
    method.on_step_start(Step(0, 1, linear))
    factor = torch.randn(5, 7, dtype=torch.float64)
    (factor * linear.quantized_weight()).sum().backward()
    peak = linear.weight.detach().abs()
    largest = (peak == peak.max()) * linear.weight.detach().sign()
    noise = linear.weight_quantizer.noise
    torch.testing.assert_close(linear.weight.grad, factor + largest * 0.7 / 3 * (factor * noise).sum())
    pushed: Any = layer().double()
    prepared(pushed, size="push").on_step_start(Step(0, 1, pushed))
    (factor * pushed.quantized_weight()).sum().backward()
    assert torch.equal(pushed.weight.grad, factor)


def test_strength_zero_leaves_every_slot_empty() -> None:
    linear = layer()
    prepared(linear, QUANTIZERS[2], strength=0.0)
    assert list(linear.state_dict()) == ["weight", "bias"]
    attach(nn.Sequential(linear), weight_quantizer=lambda each: nn.Identity())  # still free


def test_it_trains_with_channels_and_gaussian_noise_of_the_push() -> None:
    entry = {"name": "pqn", "noise": "gaussian", "size": "push"}
    session = build(run_config([entry], quantizer={"granularity": "channel"}))
    losses: list[float] = []
    train(session, lambda metrics: losses.append(metrics["train/loss"]))
    assert losses[1] < losses[0]
