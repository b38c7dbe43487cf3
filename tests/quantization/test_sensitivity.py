"""Sensitivities of layers: masked against whole, first order against the loss itself, traces against the Hessian."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from allocation_common import trained
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from harness.core.bits import BitWidths
from harness.methods._budget import Budget
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach
from harness.quantization.sensitivity import (
    MaskedSensitivity,
    first_order_scores,
    hessian_traces,
    input_errors,
)


def budget(point: str = "w3", network: str = "mlp", bits: tuple[int, ...] = (2, 3, 4)) -> Budget:
    session = trained(network)
    evaluator = session.evaluator
    copy = deepcopy(session.model).eval()
    return Budget(copy, BitWidths.of(point), evaluator.context, evaluator.calibration, bits)


def sensitivities(given: Budget, mask: float, draws: int) -> list[float]:
    measured = MaskedSensitivity(
        given.float_network, given.calibration.images(128), given.context.task.divergence, mask, draws
    )
    return [measured.of_weight(key[0], rounded) for key, rounded in given.rounded_weights()]


@pytest.mark.slow  # trains a ViT
def test_masked_parts_rank_layers_as_whole_layers_do() -> None:
    given = budget(network="vit")
    masked, whole = (np.array(sensitivities(given, *how)).reshape(3, -1) for how in ((0.25, 4), (1.0, 1)))
    assert masked.shape == (3, 6), "bits by layers"
    for place in range(3):
        assert spearmanr(masked[place], whole[place]).statistic > 0.8
    assert spearmanr(masked.ravel(), whole.ravel()).statistic > 0.9
    inside = masked / whole
    assert 0.5 < np.median(inside) < 2, "the size of the part is divided out"


def test_of_the_whole_of_a_weight_it_is_the_divergence_of_rounding_it() -> None:
    given = budget()
    images, divergence = given.calibration.images(128), given.context.task.divergence
    measured = MaskedSensitivity(given.float_network, images, divergence, mask=1.0, draws=1)
    (name, bits), rounded = next(each for each in given.rounded_weights() if each[0][0] == list(given.sizes)[2])
    whole = deepcopy(given.float_network)
    with torch.no_grad():
        whole.get_submodule(name).weight.copy_(rounded)  # type: ignore[operator]
        expected = divergence(whole(images), given.float_network(images))
    assert measured.of_weight(name, rounded) == pytest.approx(float(expected), rel=1e-4), bits


def test_masked_inputs_rank_layers_too() -> None:
    given = budget("w4a3")
    images, divergence = given.calibration.images(128), given.context.task.divergence
    found = {}
    for mask, draws in ((0.25, 4), (1.0, 1)):
        measured = MaskedSensitivity(given.float_network, images, divergence, mask, draws)
        quantizers = given.input_quantizers([2])[2]
        found[mask] = [measured.of_input(name, quantizers[name]) for name in given.sizes]
    assert spearmanr(found[0.25], found[1.0]).statistic > 0.8
    whole = deepcopy(given.float_network)
    name = list(given.sizes)[2]
    whole.get_submodule(name).input_quantizer = given.input_quantizers([2])[2][name]
    with torch.no_grad():
        expected = divergence(whole(images), given.float_network(images))
    assert found[1.0][2] == pytest.approx(float(expected), rel=1e-4)


def test_the_network_stays_as_it_was_and_draws_repeat() -> None:
    given = budget("w3a3")
    before = {name: value.clone() for name, value in given.float_network.state_dict().items()}
    trained_ones = [each.requires_grad for each in given.float_network.parameters()]
    first, second = (sensitivities(given, 0.3, 2) for _ in range(2))
    assert first == second
    quantizers = given.input_quantizers([3])
    batches = given.batches(70)
    first_order_scores(given.float_network, quantizers, batches, given.context.task.loss)
    hessian_traces(given.float_network, list(given.sizes), batches, given.context.task.loss, 1, 0)
    after = given.float_network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [each.requires_grad for each in given.float_network.parameters()] == trained_ones


def small() -> Any:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    attach(model)
    return round_to_nearest(model, "float")


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(n, 4, generator=generator), torch.arange(n) % 3) for n in (6, 10)]


class Shift(nn.Module):
    """A quantizer with a known error."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * x.square()


SHIFTS = {2: dict.fromkeys(("0", "2"), Shift(0.01)), 4: dict.fromkeys(("0", "2"), Shift(-0.02))}


def test_the_first_order_score_by_hand() -> None:
    model, loss = small(), functional.cross_entropy
    found = first_order_scores(model, SHIFTS, data(), loss)
    x, y = (torch.cat(each) for each in zip(*data()))
    hidden = torch.tanh(model[0](x))
    slope = model[2](hidden).softmax(1) - functional.one_hot(y, 3)
    of_hidden = slope @ model[2].weight
    of_inputs = (of_hidden * (1 - hidden.square())) @ model[0].weight
    for name, gradient, h in (("0", of_inputs, x), ("2", of_hidden, hidden)):
        for bits, factor in ((2, 0.01), (4, -0.02)):
            expected = factor * (gradient * h.square()).sum(1).mean()
            assert found[name, bits] == pytest.approx(float(expected), rel=1e-4)
    errors, sizes = input_errors(model, SHIFTS, data())
    assert sizes == {"0": 4, "2": 5}
    assert errors["2", 4] == pytest.approx(float((0.02 * hidden.square()).square().sum(1).mean()), rel=1e-4)


@pytest.mark.slow
def test_traces_are_those_of_the_hessian() -> None:
    model, loss = small(), functional.cross_entropy
    weights, inputs = hessian_traces(model, ["0", "2"], data(), loss, 600, seed=0)
    x, y = (torch.cat(each) for each in zip(*data()))

    def of_first(weight: Tensor) -> Tensor:
        return loss(model[2](torch.tanh(functional.linear(x, weight, model[0].bias))), y)

    def of_input(images: Tensor) -> Tensor:
        return loss(model(images), y, reduction="sum") / len(y)

    exact = torch.autograd.functional.hessian(of_first, model[0].weight.detach())
    assert weights["0"] == pytest.approx(float(exact.reshape(20, 20).trace()), rel=0.15)  # type: ignore[union-attr]
    exact = torch.autograd.functional.hessian(of_input, x)
    assert inputs["0"] == pytest.approx(float(exact.reshape(64, 64).trace()), rel=0.15)  # type: ignore[union-attr]
    first, again = (hessian_traces(model, ["0", "2"], data(), loss, 2, seed=0) for _ in range(2))
    assert first == again
