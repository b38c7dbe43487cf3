"""Symmetry regularization: the value, its gradient, which layers it acts on, and what training on it does."""

import math

import pytest
import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Step
from harness.methods.symreg import Pairing, SymmetryRegularizer, asymmetry, is_depthwise
from harness.quantization import MaxAbsQuantizer
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train

PAIRINGS: list[Pairing] = ["one", "two"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(model: nn.Module, exclude: tuple[str, ...] = (), **settings: object) -> SymmetryRegularizer:
    method = SymmetryRegularizer(SymmetryRegularizer.Config.model_validate(settings), Context(exclude=exclude))
    method.prepare(model, Calibration(lambda index: (torch.empty(0), torch.empty(0))))
    return method


def penalty(method: SymmetryRegularizer, model: nn.Module) -> Tensor:
    """The value; its gradient is in the weights' `.grad`."""
    now = Step(0, 1, model)
    value = method.penalty(now)
    if isinstance(value, Tensor):
        value.backward()
    value = value + method.after_backward(now)
    assert isinstance(value, Tensor)
    return value.detach()


def literal(weight: Tensor, pairing: Pairing) -> float:
    """The sums of the specification, index by index from 1."""
    w = [math.nan, *sorted(weight.flatten().tolist())]
    n = len(w) - 1
    if pairing == "one":
        return sum(abs(w[i] + w[n + 1 - i]) for i in range(1, n // 2 + 1)) / (n // 2)
    quads = range(1, n // 4 + 1)
    return sum(abs(w[2 * i - 1] + w[2 * i] + w[n - 2 * i + 2] + w[n - 2 * i + 1]) for i in quads) / (n // 4)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("shape", [(4,), (5,), (6,), (7,), (4, 5), (3, 7), (4, 3, 3, 3)])
def test_the_value_is_the_literal_sum(shape: tuple[int, ...], pairing: Pairing) -> None:
    weight = normal(*shape).exp()
    assert float(asymmetry(weight, pairing)) == pytest.approx(literal(weight, pairing), rel=1e-12)


def test_the_formulas_by_hand() -> None:
    weight = torch.tensor([[3.0, -1.0], [5.0, -2.0]])  # sorted -2, -1, 3, 5: pair sums 3 and 2
    assert float(asymmetry(weight, "one")) == 2.5
    assert float(asymmetry(weight, "two")) == 5.0


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_symmetrised_weights_have_none(pairing: Pairing) -> None:
    half = normal(6, 5).exp()
    for weight in (torch.cat([half, -half]), torch.cat([half.flatten(), -half.flatten(), half.new_zeros(1)])):
        assert float(asymmetry(weight[torch.randperm(len(weight))], pairing)) == 0
    assert float(asymmetry(half, pairing)) > 0.1


def test_two_to_two_is_at_most_twice_one_to_one() -> None:
    for seed in range(50):  # where floor(N/2) is even, else one pair is left over
        weight = normal(8, 2 + seed, seed=seed) + 0.1 * (seed % 5)
        assert float(asymmetry(weight, "two")) <= 2 * float(asymmetry(weight, "one")) * (1 + 1e-12)
    # and it is looser: pairs that differ in sign cancel (sorted -2, -1, 1.5, 1.5: pair sums -0.5 and 0.5)
    crossed = torch.tensor([-2.0, -1.0, 1.5, 1.5])
    assert (float(asymmetry(crossed, "one")), float(asymmetry(crossed, "two"))) == (0.5, 0.0)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_skewed_weights_have_far_more_than_normal_ones(pairing: Pairing) -> None:
    gaussian, skewed = normal(2048), normal(2048).exp()  # both brought to mean 0 and spread 1
    values = [float(asymmetry((w - w.mean()) / w.std(), pairing)) for w in (gaussian, skewed)]
    assert values[1] > 5 * values[0]


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 7), (4, 3, 3, 3)])
def test_the_gradient_is_the_finite_difference(shape: tuple[int, ...], pairing: Pairing) -> None:
    weight = normal(*shape).exp().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: asymmetry(w, pairing), (weight,), eps=1e-7, atol=1e-7)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("shape", [(8, 5), (1, 1), (1, 2), (3, 1)])
def test_zeros_and_tiny_layers(shape: tuple[int, ...], pairing: Pairing) -> None:
    weight = torch.zeros(shape, requires_grad=True)
    loss = asymmetry(weight, pairing)
    loss.backward()
    assert float(loss.detach()) == 0
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.zeros(shape))


def test_depthwise_convolutions_are_left_out() -> None:
    depthwise, multiplied, grouped = (
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
    )
    grey = nn.Conv2d(1, 4, 3)
    assert [is_depthwise(layer) for layer in (depthwise, multiplied, grouped, grey)] == [True, True, False, False]
    model = nn.Sequential(depthwise, grouped)
    value = penalty(prepared(model, strength=1.0), model)
    torch.testing.assert_close(value, asymmetry(grouped.weight.detach()))
    assert grouped.weight.grad is not None
    assert depthwise.weight.grad is None
    with pytest.raises(UserError, match="not depthwise"):
        prepared(nn.Sequential(depthwise))


def test_shared_frozen_and_excluded_weights() -> None:
    shared, again, frozen, excluded = (nn.Linear(4, 4) for _ in range(4))
    again.weight = shared.weight
    frozen.weight.requires_grad_(False)
    model = nn.Sequential(shared, again, frozen, excluded)
    value = penalty(prepared(model, exclude=("3",), strength=1.0), model)
    torch.testing.assert_close(value, asymmetry(shared.weight.detach()))
    assert [layer.weight.grad is not None for layer in (shared, frozen, excluded)] == [True, False, False]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_penalty_is_the_sum_over_layers_times_strength(pairing: Pairing) -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 10)).double()
    expected = 3 * sum(float(asymmetry(model[i].weight.detach(), pairing)) for i in (0, 2))
    value = penalty(prepared(model, strength=3.0, pairing=pairing), model)
    assert float(value) == pytest.approx(expected)


def test_it_sees_the_weight_that_gets_quantized() -> None:
    model = nn.Sequential(nn.Linear(20, 20))
    attach(model, weight_transform=lambda layer: nn.Sigmoid())
    torch.testing.assert_close(
        penalty(prepared(model, strength=1.0), model), asymmetry(model[0].weight.detach().sigmoid())
    )


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_descent_makes_weights_symmetric_and_rounding_keep_their_mean(pairing: Pairing) -> None:
    weight = normal(40, 25).exp().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=1e-2)

    def shift() -> float:
        """By how much rounding to 3 bits moves the mean, in steps."""
        with torch.no_grad():
            quantizer = MaxAbsQuantizer(3)
            return float((quantizer(weight) - weight).mean().abs() / quantizer.step(weight))

    before, value = shift(), float(asymmetry(weight.detach(), pairing))
    for _ in range(400):
        optimizer.zero_grad()
        asymmetry(weight, pairing).backward()
        optimizer.step()
    assert float(asymmetry(weight.detach(), pairing)) < 0.1 * value
    assert shift() < 0.2 * before


@pytest.mark.parametrize("methods", [["symreg"], ["symreg", "ste"], ["kure", "symreg"]])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_stack_trains_and_becomes_more_symmetric(methods: list[str], pairing: Pairing) -> None:
    def final(strength: float) -> float:
        settings = {"symreg": {"strength": strength, "pairing": pairing}}
        session = build(
            complete(
                {
                    "methods": [{"name": name, **settings.get(name, {})} for name in methods],
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
        return lines[-1]["symreg/asymmetry"]

    assert final(3.0) < 0.6 * final(0.0)


def test_it_needs_no_target_bit() -> None:
    raw = {
        "methods": ["symreg"],
        "watch_bit": 3,
        "model": {"name": "mlp5"},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
        "deploy": {"bits": [3], "scale": "recalibrate"},
    }
    assert complete(raw).target_bit is None
