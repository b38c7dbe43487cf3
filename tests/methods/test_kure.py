"""Kurtosis regularization: the value, its gradient, what training on it does, and what it stacks with."""

import math

import pytest
import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Step
from harness.methods.kure import Kurtosis, kurtosis, kurtosis_loss
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(model: nn.Module, exclude: tuple[str, ...] = (), **settings: float) -> Kurtosis:
    method = Kurtosis(Kurtosis.Config(**settings), Context(exclude=exclude))
    method.prepare(model, Calibration(lambda index: (torch.empty(0), torch.empty(0))))
    return method


def penalty(method: Kurtosis, model: nn.Module) -> Tensor:
    value = method.penalty(Step(0, 1, model))
    assert isinstance(value, Tensor)
    return value


def test_kurtosis_of_known_distributions() -> None:
    grid = torch.linspace(-3, 5, 100_001, dtype=torch.float64)
    assert float(kurtosis(grid)) == pytest.approx(1.8, abs=1e-4)
    assert float(kurtosis(normal(1000, 1000))) == pytest.approx(3.0, abs=0.02)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(50_000)
    assert float(kurtosis(signs)) == pytest.approx(1.0, abs=1e-4)


def test_the_formula_by_hand() -> None:
    # mean 1, deviations -1, -1, -1, 3: variance 12/3 = 4 over n - 1, fourth powers 3 * 1 + 81 = 84, over 16 and 4
    weight = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert float(kurtosis(weight)) == 84 / 4 / 16
    assert float(kurtosis_loss(weight, 1.0)) == (84 / 64 - 1) ** 2


def test_shift_and_scale_change_nothing() -> None:
    weight = normal(7, 11)
    for changed in (3 * weight, -1e-3 * weight, weight + 2, 1e6 * weight - 5):
        torch.testing.assert_close(kurtosis(changed), kurtosis(weight))


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 3, 3)])
def test_the_gradient_is_the_finite_difference(shape: tuple[int, ...]) -> None:
    weight = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: kurtosis_loss(w, 1.8), (weight,), eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-20, 1e4])
def test_constant_weights_add_nothing(value: float, dtype: torch.dtype) -> None:
    for shape in ((40, 30), (7, 1), (1, 1)):
        weight = torch.full(shape, value, dtype=dtype, requires_grad=True)
        loss = kurtosis_loss(weight, 1.8)
        loss.backward()
        assert float(loss.detach()) == 0
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-9, 1e-7, 1e3, 1e6])
def test_very_small_and_very_large_weights_in_fp32(size: float) -> None:
    weight = (normal(40, 30).float() * size).requires_grad_()
    loss = kurtosis_loss(weight, 1.8)
    loss.backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    expected = float(kurtosis_loss(normal(40, 30), 1.8)) if size > 1e-8 else 0.0
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("target", [1.8, 2.4, 4.0])
def test_gradient_descent_drives_each_layer_to_the_target(target: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Flatten(), nn.Linear(64, 40))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.1)
    method = prepared(model, target=target)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(300):
        optimizer.zero_grad()
        penalty(method, model).backward()
        optimizer.step()
    for layer in (model[0], model[2]):
        assert float(kurtosis(layer.weight.detach())) == pytest.approx(target, abs=0.05)
    assert method.metrics()["kure/kurtosis"] == pytest.approx(target, abs=0.05)


def test_the_penalty_is_the_mean_over_layers_times_strength() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10)).double()
    expected = sum(float(kurtosis_loss(model[i].weight.detach(), 2.0)) for i in (0, 2)) / 2
    assert float(penalty(prepared(model, strength=3.0, target=2.0), model).detach()) == pytest.approx(3 * expected)


def test_shared_frozen_and_excluded_weights() -> None:
    shared, again, other, frozen, excluded = (nn.Linear(4, 4) for _ in range(5))
    again.weight = shared.weight
    frozen.weight.requires_grad_(False)
    model = nn.Sequential(shared, again, other, frozen, excluded)
    value = penalty(prepared(model, exclude=("4",)), model)
    both = kurtosis_loss(shared.weight, 1.8) + kurtosis_loss(other.weight, 1.8)
    torch.testing.assert_close(value, both / 2)
    value.backward()
    assert frozen.weight.grad is None
    assert excluded.weight.grad is None
    with pytest.raises(UserError, match="kure finds no trainable"):
        prepared(nn.Sequential(frozen))


def test_it_sees_the_weight_that_gets_quantized() -> None:
    model = nn.Sequential(nn.Linear(20, 20))
    attach(model, weight_transform=lambda layer: nn.Tanh())
    nn.init.normal_(model[0].weight)
    torch.testing.assert_close(penalty(prepared(model), model), kurtosis_loss(model[0].weight.tanh(), 1.8))


@pytest.mark.parametrize("methods", [["kure"], ["lsq", "kure"], ["oscillation", "kure"], ["kure", "ste"]])
def test_a_stack_trains_and_comes_nearer_to_the_target(methods: list[str]) -> None:
    def final_kurtosis(strength: float) -> float:
        stack = [{"name": name, **({"strength": strength} if name == "kure" else {})} for name in methods]
        session = build(
            complete(
                {
                    "methods": stack,
                    "target_bit": 3,
                    "model": {"name": "mlp5", "width": 24, "depth": 3},
                    "data": {"name": "digits", "train_fraction": 0.2},
                    "train": {"epochs": 3, "batch_size": 32, "learning_rate": 1e-2, "precision": "fp32"},
                    "deploy": {"bits": [2, 3], "scale": "keep_range"},
                    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
                }
            )
        )
        lines: list[dict[str, float]] = []
        train(session, lines.append)
        assert all(math.isfinite(line["train/loss"]) for line in lines)
        return lines[-1]["kure/kurtosis"]

    assert abs(final_kurtosis(30.0) - 1.8) < 0.5 * abs(final_kurtosis(0.0) - 1.8)


def test_it_needs_no_target_bit() -> None:
    raw = {
        "methods": ["kure"],
        "watch_bit": 3,
        "model": {"name": "mlp5"},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
        "deploy": {"bits": [3], "scale": "recalibrate"},
    }
    assert complete(raw).target_bit is None
