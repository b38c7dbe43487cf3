"""Statistical quantization: the formula weight by weight, its grid, its gradient, other bit-widths, and its stacks."""

import copy
from typing import Any

import pytest
import torch
from test_dampening import run_config
from torch import Tensor, nn

from harness import OscillationTracker
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.methods.base import Context
from harness.methods.statsq import StatisticalQuantization
from harness.quantization import MaxAbsQuantizer, StatisticalQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach, weight_layers
from harness.training.build import build
from harness.training.loop import train

SHAPES = [(6, 40), (5, 4, 3, 3)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Weights in float64 whose channels differ in size."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values * torch.linspace(0.1, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))


def channels(weight: Tensor, per_channel: bool) -> list[list[float]]:
    """The weights that share an alpha, as plain numbers."""
    return [part.flatten().tolist() for part in (weight if per_channel else weight[None])]


def papers(values: list[float], bits: int) -> tuple[list[float], float, int]:
    """q(w) as the paper writes it, one weight after the other; alpha; n."""
    n, alpha = 2 ** (bits - 1), 2 * sum(abs(w) for w in values) / len(values)
    clipped = [min(max(w / alpha, -1.0), 1 - 1e-6) for w in values]
    return [alpha * (round(c * n - 0.5) + 0.5) / n for c in clipped], alpha, n


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_papers_formula(bits: int, per_channel: bool, shape: tuple[int, ...]) -> None:
    weight, quantizer = normal(*shape), StatisticalQuantizer(bits, per_channel)
    wanted = [q for part in channels(weight, per_channel) for q in papers(part, bits)[0]]
    # sums in another order
    torch.testing.assert_close(quantizer(weight).flatten().tolist(), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_and_distances_by_all_thresholds(bits: int, per_channel: bool) -> None:
    weight, quantizer = normal(4, 300, seed=1), StatisticalQuantizer(bits, per_channel)
    codes, distances, levels = [], [], []
    for part in channels(weight, per_channel):
        _, alpha, n = papers(part, bits)
        thresholds = [alpha * k / n for k in range(-n + 1, n)]
        assert len(thresholds) == 2**bits - 1
        codes += [sum(t <= w for t in thresholds) - n for w in part]
        distances += [min(abs(w - t) for t in thresholds) * n / alpha for w in part]
        levels += [alpha * (2 * k + 1) / (2 * n) for k in codes[-len(part) :]]
    own = quantizer.codes(weight)
    assert own.dtype == torch.int8
    assert own.flatten().tolist() == codes
    assert min(codes) == -(2 ** (bits - 1)) == quantizer.levels.low
    assert max(codes) == 2 ** (bits - 1) - 1 == quantizer.levels.high
    # differences of nearly equal numbers, up to 2^(b-1) bins from 0
    torch.testing.assert_close(quantizer.threshold_distance(weight).flatten().tolist(), distances, rtol=0, atol=1e-10)
    assert max(distances) > 1, "some are clipped"
    single = weight.float()
    on_grid = quantizer.width(single) * (quantizer.codes(single) + 0.5)
    assert torch.equal(quantizer(single), on_grid), "to the last bit, in fp32 too"
    torch.testing.assert_close(quantizer(weight).flatten().tolist(), levels, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_two_to_the_bits_levels_and_no_zero(bits: int) -> None:
    weight = torch.linspace(-2, 2, 8001)[None]
    values = StatisticalQuantizer(bits, per_channel=True)(weight).unique()
    assert len(values) == 2**bits
    assert bool((values != 0).all())
    alpha = 2 * weight.abs().mean()
    torch.testing.assert_close(values, alpha * (torch.arange(2**bits) + 0.5 - 2 ** (bits - 1)) / 2 ** (bits - 1))


def test_two_bits_are_a_quarter_and_three_quarters_and_thresholds_belong_above() -> None:
    row = torch.tensor([[-6.75, -1.0, -1.25, -0.5, -1e-30, 0.0, 1e-30, 1.0, 0.75, 2.5, 2.0, -0.25]])
    weight = torch.cat([row, torch.ones(1, 16), torch.zeros(1, 4)], 1)  # mean 1, alpha 2, bins of width 1
    quantizer = StatisticalQuantizer(2, per_channel=True)
    assert quantizer(weight)[0, :12].tolist() == [
        *(-1.5, -0.5, -1.5, -0.5, -0.5, 0.5),
        *(0.5, 1.5, 0.5, 1.5, 1.5, -0.5),
    ]
    assert quantizer.codes(weight)[0, :12].tolist() == [-2, -1, -2, -1, -1, 0, 0, 1, 0, 1, 1, -1]
    distances = quantizer.threshold_distance(weight)[0, :12]
    assert torch.equal(distances, torch.tensor([5.75, 0, 0.25, 0.5, 1e-30, 0, 1e-30, 0, 0.25, 1.5, 1.0, 0.25]))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_scale_equivariance_and_symmetry(bits: int, per_channel: bool) -> None:
    weight, quantizer = normal(6, 50).float(), StatisticalQuantizer(bits, per_channel)
    for factor in (0.25, 2.0, 1024.0):  # exact
        assert torch.equal(quantizer(factor * weight), factor * quantizer(weight))
    torch.testing.assert_close(quantizer(3.7 * weight.double()), 3.7 * quantizer(weight.double()), rtol=1e-13, atol=0)
    assert torch.equal(quantizer(-weight), -quantizer(weight)), "but for weights on a threshold"


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_gradient_is_one_everywhere(per_channel: bool) -> None:
    weight = normal(5, 60).float().requires_grad_()
    quantizer, upstream = StatisticalQuantizer(3, per_channel), torch.randn(5, 60)
    with torch.no_grad():
        assert bool((weight.abs() > 2 * weight.abs().mean()).any()), "clipped ones"
    quantized = quantizer(weight)
    (gradient,) = torch.autograd.grad(quantized, weight, upstream)
    assert torch.equal(gradient, upstream)
    assert not quantizer.width(weight).requires_grad
    # differentiated twice: d/dw of the sum of squares' gradient, 2 q(w), straight through
    (first,) = torch.autograd.grad(quantizer(weight).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first, weight, upstream)
    assert torch.equal(second, 2 * upstream)


def test_channels_are_independent_and_a_tensor_is_one() -> None:
    weight = normal(5, 4, 3, 3).float()
    own, whole = StatisticalQuantizer(3, per_channel=True), StatisticalQuantizer(3)
    for row, quantized in zip(weight, own(weight), strict=True):
        assert torch.equal(whole(row[None])[0], quantized)
    other = weight.clone()
    other[2] *= 5
    for change, others_change in ((own, False), (whole, True)):
        before, after = change(weight), change(other)
        assert torch.equal(before[3:], after[3:]) is not others_change
    assert own.width(weight).shape == (5, 1, 1, 1)
    assert whole.width(weight).shape == ()


def test_zeros_give_zeros() -> None:
    for weight in (torch.zeros(3, 5), torch.cat([torch.zeros(1, 5), torch.randn(2, 5)])):
        for per_channel in (True, False) if not weight.any() else (True,):
            quantizer, leaf = StatisticalQuantizer(2, per_channel), weight.clone().requires_grad_()
            quantized = quantizer(leaf)
            quantized.sum().backward()
            assert torch.equal(quantized[0], torch.zeros(5))
            assert torch.equal(leaf.grad, torch.ones(3, 5))  # type: ignore[arg-type]
            assert not quantizer.codes(weight)[0].any()
            assert not quantizer.threshold_distance(weight)[0].any()
            assert bool(quantized[1:].all()) == bool(weight.any()), "no zero elsewhere"


@pytest.mark.parametrize("bits", [0, 1, 9, True])
def test_impossible_bits_are_refused(bits: int) -> None:
    with pytest.raises(UserError, match="2 to 8"):
        StatisticalQuantizer(bits)


@pytest.mark.parametrize("per_channel", [True, False])
def test_other_bit_widths(per_channel: bool) -> None:
    model = nn.Sequential(nn.Linear(30, 6))
    attach(model, weight_quantizer=lambda layer: StatisticalQuantizer(3, per_channel))
    latent = model[0].weight.detach().clone()
    own = StatisticalQuantizer(3, per_channel)

    def deployed(bits: int, scale: Any) -> Tensor:
        return round_to_nearest(copy.deepcopy(model), bits, scale)[0].weight.detach()  # type: ignore[index, union-attr]

    for scale in ("keep_step", "keep_range", "recalibrate"):
        assert torch.equal(deployed(3, scale), own(latent).detach())
    for bits in (2, 4, 8):
        assert torch.equal(deployed(bits, "recalibrate"), MaxAbsQuantizer(bits)(latent).detach())
        assert torch.equal(deployed(bits, "keep_range"), StatisticalQuantizer(bits, per_channel)(latent).detach())
        n, width = 2 ** (bits - 1), own.width(latent)
        kept = width * ((latent / width).floor().clamp(-n, n - 1) + 0.5)
        torch.testing.assert_close(deployed(bits, "keep_step"), kept, rtol=1e-6, atol=0)  # alpha n'/n /n' rounds
    assert own.at_bits(3, "keep_step") is own
    there = own.at_bits(5, "keep_step").at_bits(3, "keep_step")
    assert torch.equal(there(latent), own(latent)), "and back"
    assert own.at_bits(5, "keep_range").per_channel is per_channel


@pytest.mark.parametrize("granularity", ["channel", "tensor", "run", None])
@pytest.mark.parametrize("runs", ["channel", "tensor"])
def test_granularity(granularity: str | None, runs: Any) -> None:
    settings: Any = {} if granularity is None else {"granularity": granularity}
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(1, 2, 3), nn.Linear(3, 2))
    context = Context(target_bit=4, quantizer=QuantizerConfig(granularity=runs), exclude=("2",))
    StatisticalQuantization(StatisticalQuantization.Config(**settings), context).prepare(model, None)  # type: ignore[arg-type]
    expected = {"run": runs, None: "channel"}.get(granularity, granularity) == "channel"
    assert isinstance(model[2], nn.Linear)
    assert not hasattr(model[2], "weight_quantizer")
    for layer in model[:2]:
        own: Any = layer.weight_quantizer
        assert (type(own), own.bits, own.per_channel) == (StatisticalQuantizer, 4, expected)
        assert torch.equal(layer.quantized_weight(), StatisticalQuantizer(4, expected)(layer.weight))


@pytest.mark.parametrize("model", [{"name": "mlp5", "width": 16}, {"name": "resnet18", "width": 2}], ids=str)
def test_it_trains_and_trackers_see_its_codes(model: dict[str, Any]) -> None:
    session = build(run_config(["statsq"], model, train={"epochs": 3, "batch_size": 40, "precision": "fp32"}))
    plain = OscillationTracker(session.model, 3, fused=False)
    update, lines = session.tracker.update, []

    def both() -> None:
        update()
        plain.update()

    session.tracker.update = both  # type: ignore[method-assign]
    train(session, lines.append)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    own, other = session.tracker.state_dict(), plain.state_dict()
    for name, layer in attach(session.model).items():
        quantizer: Any = layer.weight_quantizer
        codes = quantizer.codes(layer.weight)
        assert torch.equal(own[name]["code"], codes)
        assert torch.equal(own[name]["frequency"], other[name]["frequency"])
    deployed = weight_layers(session.evaluator.deployed(session.model, 3))
    for name, layer in attach(session.model).items():
        assert torch.equal(deployed[name].weight, layer.quantized_weight())
    assert not [key for key in session.model.state_dict() if "quantizer" in key], "no state"


def test_it_sees_the_effective_weight() -> None:
    session = build(run_config([{"name": "satnl", "kappa": 0.5, "start": "weights"}, "statsq"]))
    for layer in attach(session.model).values():
        effective = layer.weight_transform(layer.weight)
        assert torch.equal(layer.quantized_weight(), StatisticalQuantizer(3, per_channel=True)(effective))
        assert not torch.equal(layer.quantized_weight(), StatisticalQuantizer(3, per_channel=True)(layer.weight))


@pytest.mark.parametrize("above", ["dampening", "freezing"])
def test_what_works_with_codes_times_a_step_refuses_it(above: str) -> None:
    with pytest.raises(UserError, match=rf"'{above}' .* StatisticalQuantizer of layer 'layer1' .*whole steps"):
        build(run_config(["statsq", above]))


@pytest.mark.parametrize("stack", [["statsq", "lsq"], ["ste", "statsq"]])
def test_a_second_quantizer_is_refused(stack: list[str]) -> None:
    with pytest.raises(UserError, match="slot weight_quantizer already holds"):
        build(run_config(stack))
