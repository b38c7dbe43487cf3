"""AdaRound: floor or ceil everywhere, near the best rounding there is, asymmetric, and its regularization's part."""

import itertools
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from test_gptq import CALIBRATION, W3, correlated, grid_of, network, output_errors, problem, values_of
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.methods.adaround import AdaRound
from harness.methods.base import Calibration, Context
from harness.quantization import LSQQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach
from harness.quantization.value_grid import ValueGrid
from harness.training.config import component


def method(context: Context | None = None, **settings: Any) -> AdaRound:
    return AdaRound(AdaRound.Config(**{"images": 192, "iterations": 100, **settings}), context or Context())


def neighbours(weight: Tensor, bits: int = 3) -> tuple[Tensor, Tensor]:
    lower, upper = grid_of(weight[0], bits).neighbours(weight[0].double())
    return lower.float()[None], upper.float()[None]


def symmetric(weight: Tensor, bits: int = 3, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """What `choose` takes where float and rounded network give the same inputs."""
    hessian = problem(1, weight.shape[2], seed)[1].float()
    return weight, neighbours(weight, bits), hessian, weight @ hessian


def errors(rounded: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """Of each row."""
    difference = rounded - weight
    return (difference @ gram * difference).sum(-1)


def test_h_ends_at_zero_or_one_because_of_the_regularization() -> None:
    arguments = symmetric(problem(20, 12)[0])
    decided = []
    for regularization in (10.0, 0.0):
        h = method(iterations=250, regularization=regularization).choose(*arguments)
        decided.append(float(((h < 1e-3) | (h > 1 - 1e-3)).float().mean()))
    assert decided[0] > 0.98
    assert decided[1] < 0.3


def by_autograd(inputs: Tensor, wanted: Tensor, ends: tuple[Tensor, Tensor], weight: Tensor, steps: int) -> Tensor:
    """h of one layer from its inputs (T, I) and float outputs (T, R), by the paper's formulas, lambda 0.3."""
    lower, upper = ends
    first = (weight - lower) / (upper - lower)
    v = (-torch.log(1.2 / (first + 0.1) - 1)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=0.1)
    for index in range(steps):
        h = (1.2 * v.sigmoid() - 0.1).clamp(0, 1)
        loss = (inputs @ (lower + h * (upper - lower)).T - wanted).square().sum(1).mean()
        if index >= 0.2 * steps:
            beta = 2 + 18 * (1 + math.cos(math.pi * (index / steps - 0.2) / 0.8)) / 2
            loss = loss + 0.3 * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (1.2 * v.detach().sigmoid() - 0.1).clamp(0, 1)


def test_second_moments_give_what_autograd_on_the_images_gives() -> None:
    weight = problem(7, 5)[0].double()
    ends = tuple(each.double() for each in neighbours(weight, 2))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    seen = x + 0.3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    outputs = x @ weight[0].T
    expected = by_autograd(seen, outputs, (ends[0][0], ends[1][0]), weight[0], 40)
    tuned = method(iterations=40, learning_rate=0.1, regularization=0.3, regularization_unit="absolute")
    gram, cross = (seen.T @ seen / 60)[None], (seen.T @ x / 60)[None]
    found = tuned.choose(weight, (ends[0], ends[1]), gram, weight @ cross.transpose(1, 2))[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert 0.2 < float(((found == 0) | (found == 1)).double().mean()) < 0.95


def test_the_scale_of_the_inputs_has_no_say_but_in_absolute_units() -> None:
    weight, ends, gram, wanted = symmetric(problem(20, 12)[0])
    for unit, regularization, both in (("error", 10.0, True), ("absolute", 0.01, False)):
        settings = {"iterations": 250, "regularization_unit": unit, "regularization": regularization}
        found = [method(**settings).choose(weight, ends, scale * gram, scale * wanted) for scale in (1.0, 2.0**-12)]
        large, small = (float(((h < 1e-2) | (h > 1 - 1e-2)).float().mean()) for h in found)
        assert small > 0.95
        assert (large > 0.95) == both


@pytest.mark.parametrize("bits", [2, 3])
def test_nearly_the_best_of_all_roundings(bits: int) -> None:
    weight = problem(6, 9, seed=bits)[0]
    weight, (lower, upper), gram, wanted = symmetric(weight, bits, seed=3)
    h = method(iterations=250).choose(weight, (lower, upper), gram, wanted)
    found = errors(torch.where(h >= 0.5, upper, lower), weight, gram)
    every = [torch.tensor(choice, dtype=torch.bool) for choice in itertools.product((False, True), repeat=9)]
    best = torch.stack([errors(torch.where(up, upper, lower), weight, gram) for up in every]).amin(0)
    nearest = errors(grid_of(weight[0], bits).nearest(weight[0].double())[None].float(), weight, gram)
    assert float(found.sum()) < min(1.7 * float(best.sum()), 0.8 * float(nearest.sum()))


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = problem(9, 12)[0]
    gram = torch.eye(12)[None]
    lower, upper = neighbours(weight)
    h = method().choose(weight, (lower, upper), gram, weight @ gram)
    middle = (weight - lower - (upper - lower) / 2).abs() < 0.02 * (upper - lower)
    nearest = grid_of(weight[0]).nearest(weight[0].double())[None].float()
    assert bool(((torch.where(h >= 0.5, upper, lower) == nearest) | middle).all())


def test_inputs_of_the_rounded_network_are_made_up_for() -> None:
    """They are 10 % larger here, so that weights 10 % smaller reconstruct the output."""
    weight, ends, gram, _ = symmetric(problem(30, 12)[0])
    larger, cross = 1.21 * gram, 1.1 * gram
    errors_of = []
    for target in (weight @ cross.transpose(1, 2), 1.1 * weight @ cross.transpose(1, 2)):
        h = method().choose(weight, ends, larger, target)
        rounded = torch.where(h >= 0.5, ends[1], ends[0])
        errors_of.append(float(errors(1.1 * rounded, weight, gram).sum()))
    assert errors_of[0] < 0.95 * errors_of[1], "the second one takes the same inputs for the float network's"


def test_a_network_ends_at_floor_or_ceil_everywhere() -> None:
    model, rounded = network().requires_grad_(False), round_to_nearest(network(), 3)
    deployed: Any = network()
    method(iterations=250).deploy(deployed, W3, CALIBRATION)
    moved = 0
    for index in (0, 2, 5):
        grid = ValueGrid(values_of(index))
        lower, upper = grid.neighbours(model[index].weight.flatten(1))  # type: ignore[operator, union-attr]
        weight = deployed[index].weight.flatten(1)
        assert bool(((weight == lower) | (weight == upper)).all())
        moved += int((weight != rounded[index].weight.flatten(1)).sum())  # type: ignore[operator, union-attr, arg-type]
        assert deployed[index].deployed
        assert torch.equal(deployed[index].bias, model[index].bias)  # type: ignore[arg-type]
    assert moved > 50
    assert all(own < 0.9 * rtn for own, rtn in zip(output_errors(deployed, model), output_errors(rounded, model)))
    images, outputs = correlated(7), model(correlated(7))
    assert (deployed(images) - outputs).norm() < 0.9 * (rounded(images) - outputs).norm()


def test_the_float_network_is_what_is_reconstructed() -> None:
    """The last layer makes up for what rounding did to the inputs that it gets: their mean is off by a constant."""
    deployed: Any = nn.Sequential(nn.Linear(1, 40, bias=False), nn.Linear(40, 3)).eval()
    with torch.no_grad():
        deployed[0].weight.copy_(torch.linspace(0.55, 1, 40)[:, None])  # to 1 all of them, at 2 bits
    model = deepcopy(deployed)
    calibration = Calibration(lambda index: (1 + torch.rand(50, 1), torch.zeros(50)))
    method(iterations=250, images=50).deploy(deployed, BitWidths(2), calibration)
    assert float(deployed[0].weight.min()) == 1 or float(deployed[0].weight.min()) == 0
    x = 1 + torch.rand(50, 1)
    wanted, found = model(x) - model[1].bias, deployed(x) - deployed[1].bias
    blind = deployed[0](x) @ round_to_nearest(deepcopy(model), 2)[1].weight.T  # type: ignore[operator, union-attr]
    assert (found - wanted).norm() < 0.5 * (blind - wanted).norm()


def test_weights_beyond_the_grid_become_its_ends() -> None:
    model: Any = network()
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))
    with torch.no_grad():
        model[5].weight[0, 0] = 9.0
        model[5].weight[1, 0] = -9.0
    step = float(model[5].weight_quantizer.learned_step.detach())
    method().deploy(model, W3, CALIBRATION)
    weight = model[5].weight
    assert (float(weight[0, 0]), float(weight[1, 0])) == pytest.approx((3 * step, -3 * step))
    codes = weight / step
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


def test_a_second_time_gives_the_same_and_float_nothing() -> None:
    model = network()
    copies: list[Any] = [deepcopy(model) for _ in range(3)]
    for copy, point in zip(copies, (W3, W3, BitWidths())):
        torch.rand(3)
        method().deploy(copy, point, CALIBRATION)
    states = [copy.state_dict() for copy in (*copies, model)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(torch.equal(value, states[3][key]) for key, value in states[2].items())
    assert not torch.equal(states[0]["5.weight"], states[3]["5.weight"])


def test_betas_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match=r"method 'adaround': beta_end \(8\) must not exceed beta_start \(4\)"):
        component("method", {"name": "adaround", "beta_start": 4, "beta_end": 8})
