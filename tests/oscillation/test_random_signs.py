"""The control of the oscillation regularizer: its push with random signs."""

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from config_common import run_id
from torch import Tensor, nn

from harness import OscillationRegularizer
from harness.core.config_base import QuantizerConfig
from harness.core.errors import Stopped
from harness.methods.base import Calibration, Context, Step
from harness.methods.oscillation import Oscillation
from harness.oscillation.regularizer import oscillation_penalty
from harness.quantization import make_quantizer
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train

DRAWS = 400
QUANTIZERS = [QuantizerConfig(), QuantizerConfig(granularity="channel"), QuantizerConfig(range="mse")]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def weights(model: nn.Sequential) -> list[Tensor]:
    return [layer.weight for layer in (model[0], model[2])]  # type: ignore[misc]


def pushes(model: nn.Sequential, quantizer: QuantizerConfig, steps: range, seed: int = 0) -> list[Tensor]:
    """What the method adds to each weight's gradient at each step: (steps, O, I, ...) of each layer."""
    context = Context(target_bit=3, seed=seed, quantizer=quantizer)
    method = Oscillation(Oscillation.Config(strength=2.0, direction="random_sign"), context)
    method.prepare(model, Calibration(lambda index: (torch.zeros(0), torch.zeros(0))))
    found: list[list[Tensor]] = [[], []]
    for index in steps:
        model.zero_grad()
        method.after_backward(Step(index, DRAWS, model))
        for place, weight in zip(found, weights(model)):
            assert weight.grad is not None
            place.append(weight.grad.clone())
    return [torch.stack(place) for place in found]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=["tensor", "channel", "mse"])
def test_the_regularizers_size_and_mean_zero(quantizer: QuantizerConfig) -> None:
    model = network()
    for weight, found in zip(weights(model), pushes(model, quantizer, range(DRAWS))):
        _, gradient = oscillation_penalty(weight, make_quantizer(quantizer, 3).fit(weight), 2.0)
        assert torch.equal(found.abs(), gradient.abs().expand_as(found)), "the largest weight's part among them"
        assert bool((found.mean(0).abs() <= 5 * gradient.abs() / DRAWS**0.5).all())
        signs = found.flatten(1)[:, gradient.flatten() != 0].sign()
        pairs = torch.corrcoef(signs.T).fill_diagonal_(0)
        assert float(pairs.abs().max()) < 5.5 / DRAWS**0.5, "each weight has a sign of its own"
        assert float((signs[1:] * signs[:-1]).mean(0).abs().max()) < 5 / DRAWS**0.5, "drawn again at each step"


def test_signs_depend_on_seed_and_step_alone() -> None:
    first = pushes(network(), QUANTIZERS[0], range(3))
    torch.rand(3)
    last = pushes(network(), QUANTIZERS[0], range(2, 3))
    other = pushes(network(), QUANTIZERS[0], range(2, 3), seed=1)
    for all_three, third, of_another in zip(first, last, other):
        assert torch.equal(all_three[2], third[0])
        assert not torch.equal(of_another, third)


def test_the_value_is_that_of_the_regularizer() -> None:
    plain, control = (OscillationRegularizer(network(), 3, 2.0) for _ in range(2))
    value = control.add_gradient(torch.Generator().manual_seed(0))
    torch.testing.assert_close(value, plain.add_gradient(), check_dtype=False)


def session(**settings: Any) -> Any:
    raw = {
        "methods": [{"name": "oscillation", "strength": 3.0, **settings}],
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 12, "depth": 3},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 40, "learning_rate": 5e-3, "precision": "fp32"},
        "deploy": {"bits": [3], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return build(complete(raw))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    states = {}
    for name, stops in (("whole", [99]), ("parts", [2, 2, 99])):
        for allowed in stops:
            run = session(direction="random_sign")
            checkpoint.restore(tmp_path / f"{name}.pt", run)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(run, lambda metrics: None, lambda left=left: next(left))  # type: ignore[misc]
            checkpoint.save(tmp_path / f"{name}.pt", run)
        states[name] = run.model.state_dict()
    assert all(torch.equal(states["parts"][key], value) for key, value in states["whole"].items())
    graph = session()
    train(graph, lambda metrics: None)
    assert any(not torch.equal(states["whole"][key], value) for key, value in graph.model.state_dict().items())


def test_runs_from_before_the_setting_keep_their_names() -> None:
    entry = {"name": "oscillation", "strength": 10.0}
    assert run_id(methods=[entry]) == run_id(methods=[{**entry, "direction": "graph"}]) == "d8bf9a3ecab3"
    assert run_id(methods=[{**entry, "direction": "random_sign"}]) != "d8bf9a3ecab3"
