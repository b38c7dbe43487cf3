"""GPTQ: the closed form on two weights, its calibration error, blocks, order, dead inputs, and whole networks."""

from copy import deepcopy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import QuantizerConfig
from harness.core.layer_points import LayerPoints
from harness.methods.base import Calibration, Context
from harness.methods.gptq import Gptq
from harness.quantization import LSQQuantizer, make_quantizer
from harness.quantization.deploy import choices, round_to_nearest
from harness.quantization.layer_inputs import columns, inputs_of, moments, weight_rows
from harness.quantization.layers import attach
from harness.quantization.value_grid import ValueGrid

W3 = BitWidths(3)


def correlated(seed: int = 0) -> Tensor:
    """Images (48, 3, 6, 6) whose neighbouring pixels are alike."""
    noise = torch.randn(48, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return noise[..., :-1, :-1] + noise[..., 1:, :-1] + noise[..., :-1, 1:] + 0.5


CALIBRATION = Calibration(lambda index: (correlated(index), torch.zeros(48, dtype=torch.int64)))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4, stride=2)]
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)).eval()


def method(context: Context | None = None, **settings: Any) -> Gptq:
    return Gptq(Gptq.Config(**{"images": 192, **settings}), context or Context())


def grid_of(weight: Tensor, bits: int = 3, granularity: Literal["tensor", "channel"] = "tensor") -> ValueGrid:
    return ValueGrid(make_quantizer(QuantizerConfig(granularity=granularity), bits).fit(weight).values(weight).double())


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (1, R, I) and a Hessian (1, I, I) of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(4 * inputs, inputs, generator=generator).double()
        @ torch.randn(inputs, inputs, generator=generator).double()
    )
    return torch.randn(1, outputs, inputs, generator=generator), (x.T @ x)[None] / len(x)


def error(rounded: Tensor, weight: Tensor, hessian: Tensor) -> float:
    difference = rounded - weight.double()
    return float((difference @ hessian * difference).sum())


@pytest.mark.parametrize("act_order", [False, True])
def test_two_weights_get_the_closed_form_optimum(act_order: bool) -> None:
    """The first one is rounded to nearest; given its error, the second one's best real value is known."""
    weight, _ = problem(50, 2)
    hessian = torch.tensor([[[1.0, 0.8], [0.8, 2.0]]], dtype=torch.float64)
    grid = grid_of(weight[0])
    found = method(damping=1e-12, act_order=act_order).rounded(weight, hessian, grid)[0]
    first, second = (1, 0) if act_order else (0, 1)  # the second input is the larger one
    w = weight[0].double()
    q_first = grid.nearest(w[:, [first]])[:, 0]
    best = w[:, second] + hessian[0, 0, 1] / hessian[0, second, second] * (w[:, first] - q_first)
    assert torch.equal(found[:, first], q_first)
    assert torch.equal(found[:, second], grid.nearest(best[:, None])[:, 0])
    assert not torch.equal(found, grid.nearest(w)), "the second one is not merely rounded to nearest"


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_error_is_below_that_of_rounding_to_nearest(granularity: Any, bits: int, act_order: bool) -> None:
    weight, hessian = problem(30, 20, seed=bits)
    grid = grid_of(weight[0], bits, granularity)
    found = method(act_order=act_order).rounded(weight, hessian, grid)
    nearest = grid.nearest(weight[0].double())[None]
    assert bool(torch.isin(found[0], grid.values).all())
    assert error(found, weight, hessian) < (0.8 if bits == 2 else 0.6) * error(nearest, weight, hessian)


def test_the_size_of_blocks_changes_nothing() -> None:
    weight, hessian = problem(9, 21)
    found = [method(block=block).rounded(weight, hessian, grid_of(weight[0])) for block in (1, 4, 21, 128)]
    assert all(torch.equal(each, found[0]) for each in found[1:])


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight, hessian = problem(9, 21)
    grid = grid_of(weight[0])
    found = method().rounded(weight, torch.diag_embed(hessian.diagonal(dim1=1, dim2=2)), grid)
    assert torch.equal(found[0], grid.nearest(weight[0].double()))


def test_groups_are_problems_of_their_own() -> None:
    weights, hessians = zip(*(problem(5, 8, seed) for seed in range(3)))
    weight, hessian = torch.cat(weights), torch.cat(hessians)
    grid = grid_of(weight.flatten(0, 1))
    together = method(act_order=True).rounded(weight, hessian, grid)
    for group in range(3):
        alone = method(act_order=True).rounded(weights[group], hessians[group], grid)
        assert torch.equal(together[group], alone[0])


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_are_always_zero(act_order: bool) -> None:
    weight, hessian = problem(9, 8)
    dead = torch.tensor([1, 6])
    hessian[:, dead], hessian[:, :, dead] = 0, 0
    rest = torch.tensor([i for i in range(8) if i not in dead])
    grid = grid_of(weight[0])
    alone = method(act_order=act_order).rounded(weight[:, :, rest], hessian[:, rest][:, :, rest], grid)
    for choice, expected in (("nearest", grid.nearest(weight[0, :, dead].double())), ("zero", torch.zeros(9, 2))):
        found = method(act_order=act_order, dead_inputs=choice).rounded(weight, hessian, grid)[0]
        assert torch.equal(found[:, dead], expected.double())
        assert torch.equal(found[:, rest], alone[0]), "the others do not depend on them"
    nothing = method().rounded(weight, torch.zeros_like(hessian), grid)
    assert torch.equal(nothing[0], grid.nearest(weight[0].double()))


def values_of(index: int) -> Tensor:
    """What rounding to nearest at 3 bits would choose among in a layer of the network."""
    choice = choices(network(), W3, "recalibrate", QuantizerConfig())[str(index)]
    return choice.values(choice.layer.weight)


def output_errors(deployed: Any, model: Any) -> list[float]:
    """Of each layer, on the inputs that it gets in the deployed network."""
    found = []
    for index in (0, 2, 5):
        layer: Any = attach(deepcopy(deployed))[str(index)]
        (seen,) = inputs_of(deployed, deployed[index], correlated(1))
        rows, wanted = (weight_rows(layer, each[index].weight) for each in (deployed, model))
        found.append(sum(float((x @ (rows - wanted).transpose(1, 2)).square().sum()) for x in columns(layer, seen)))
    return found


def test_a_network_layer_by_layer() -> None:
    model, rounded = network().requires_grad_(False), round_to_nearest(network(), 3)
    deployed: Any = network()
    method().deploy(deployed, W3, CALIBRATION)
    for index in (0, 2, 5):
        assert set(deployed[index].weight.flatten().tolist()) <= set(values_of(index).flatten().tolist())
        assert deployed[index].deployed
        assert torch.equal(deployed[index].bias, model[index].bias)  # type: ignore[arg-type]
    assert all(own < 0.9 * rtn for own, rtn in zip(output_errors(deployed, model), output_errors(rounded, model)))
    images, outputs = correlated(7), model(correlated(7))
    assert (deployed(images) - outputs).norm() < 0.9 * (rounded(images) - outputs).norm()


def test_each_layer_sees_the_earlier_ones_rounded() -> None:
    deployed: Any = network()
    method().deploy(deployed, W3, CALIBRATION)
    seen = {}
    for name, source in (("rounded", deployed), ("float", network())):
        layer: Any = attach(source)["5"]
        (hessian,) = moments(layer, inputs_of(source, layer, CALIBRATION.images(192)))
        weight = network()[5].weight
        seen[name] = method().rounded(weight_rows(layer, weight), hessian, grid_of(weight)).float()[0]  # type: ignore[arg-type]
    assert torch.equal(deployed[5].weight, seen["rounded"])
    assert not torch.equal(deployed[5].weight, seen["float"])


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


@pytest.mark.parametrize(("scale", "bits", "factor"), [("keep_range", 3, 1), ("keep_range", 2, 3), ("keep_step", 4, 1)])
def test_the_steps_of_a_trained_network(scale: Any, bits: int, factor: float) -> None:
    """At its own bits its own step; at others the range that is kept gives a step of 3/1 times the size."""
    model: Any = network()
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3, per_channel=True))
    steps = [model[index].weight_quantizer.learned_step.detach().clone() for index in (0, 2, 5)]
    method(Context(scale=scale)).deploy(model, BitWidths(bits), CALIBRATION)
    for index, step in zip((0, 2, 5), steps):
        codes = model[index].weight / (factor * step)
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        assert float(codes.abs().max()) <= 2 ** (bits - 1) - 1 + 1e-4


def test_points_by_layer() -> None:
    model: Any = network()
    points = LayerPoints.of({"0": 2, "2": "float", "*": 4})
    method().deploy(model, points, CALIBRATION)
    round_to_nearest(model, points)
    assert [len(model[index].weight.unique()) for index in (0, 5)] == [3, 15]
    assert torch.equal(model[2].weight, network()[2].weight)  # type: ignore[arg-type]


def test_what_is_excluded_or_deployed_stays() -> None:
    model: Any = network()
    layers = attach(model, exclude="0")
    layers["2"].deployed = True
    before = deepcopy(model.state_dict())
    method(Context(exclude=("0",))).deploy(model, W3, CALIBRATION)
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == ["5.weight"]
