"""The quantizer of decoupled thresholds and levels, against lists of both written out and plain loops over weights."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from quantizers_common import BITS, normal
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.quantization import DecoupledQuantizer


def quantizer_of(bits: int, threshold_step: Any, level_step: Any, shrink: float = 1.0) -> DecoupledQuantizer:
    thresholds, levels = torch.tensor(threshold_step), torch.tensor(level_step)
    quantizer = DecoupledQuantizer(bits, per_channel=thresholds.dim() > 0)
    quantizer.threshold_step, quantizer.level_step = thresholds, nn.Parameter(levels)
    quantizer.shrink.fill_(shrink)
    quantizer.fitted = True
    return quantizer


def thresholds_of(bits: int, step: float) -> list[float]:
    return [step * j for j in range(1 - 2 ** (bits - 1), 2 ** (bits - 1))]


def levels_of(bits: int, step: float) -> list[float]:
    return [step * (odd / 2) for odd in range(1 - 2**bits, 2**bits, 2)]


def naive(weight: Tensor, thresholds: list[float], levels: list[float]) -> tuple[list[float], list[int]]:
    """Values and codes of weights: from the lowest level, one level up for each threshold that a weight has reached."""
    assert len(levels) == len(thresholds) + 1
    ranks = [sum(value >= threshold for threshold in thresholds) for value in weight.flatten().tolist()]
    return [levels[rank] for rank in ranks], [rank - len(levels) // 2 for rank in ranks]


def test_two_bits_are_the_grid_of_the_paper() -> None:
    quantizer = quantizer_of(2, 0.5, 0.8)
    for shrink in (1.0, 0.5):
        quantizer.shrink.fill_(shrink)
        weight = shrink * torch.tensor([[-9.0, -0.51, -0.5, -0.49, -0.01], [0.0, 0.01, 0.49, 0.5, 9.0]])
        low, high = 0.4 * shrink, 1.2 * shrink  # half of 0.8, and three halves
        expected = torch.tensor([[-high, -high, -low, -low, -low], [low, low, low, high, high]])
        torch.testing.assert_close(quantizer(weight), expected)
        assert quantizer.codes(weight).tolist() == [[-2, -2, -1, -1, -1], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize("shrink", [1.0, 0.3])
@pytest.mark.parametrize("bits", BITS)
def test_values_and_codes_are_the_naive_ones(bits: int, shrink: float) -> None:
    quantizer, n = quantizer_of(bits, 0.25, 0.7, shrink), 2 ** (bits - 1)
    thresholds, levels = thresholds_of(bits, shrink * 0.25), levels_of(bits, shrink * 0.7)
    weight = torch.linspace(-1.4, 1.4, 7001)[None] * n * 0.25 * shrink
    near = (weight.double() / (0.25 * shrink)).frac().abs()
    weight = weight[(near > 1e-5) & (near < 1 - 1e-5)][None]  # thresholds are products in fp32 there, in fp64 here
    values, codes = naive(weight, thresholds, levels)
    torch.testing.assert_close(quantizer(weight)[0], torch.tensor(values))
    assert quantizer.codes(weight).tolist() == [codes]
    assert quantizer.codes(weight).dtype == torch.int8
    assert len(quantizer(weight).unique()) == 2**bits
    assert quantizer.levels == (-n, n - 1)
    assert bool((quantizer(weight).detach().diff() >= 0).all()), "monotone"
    to_thresholds = (weight[0][:, None] - torch.tensor(thresholds)).abs().amin(1) / (0.25 * shrink)
    torch.testing.assert_close(quantizer.threshold_distance(weight)[0], to_thresholds, atol=2e-5, rtol=0)
    centres = torch.tensor([shrink * 0.25 * (code + 0.5) for code in codes])
    torch.testing.assert_close(quantizer.centres(weight)[0], centres)


def test_the_steps_start_at_the_deviation_of_the_weights() -> None:
    weight = normal(6, 5, 3, 3) * torch.linspace(0.5, 2, 6)[:, None, None, None]
    for bits in BITS:
        quantizer = DecoupledQuantizer(bits).fit(weight)
        start = np.std(weight.double().numpy(), ddof=1) / 2 ** (bits - 2)
        assert quantizer.threshold_step.shape == quantizer.level_step.shape == quantizer.shrink.shape == ()
        assert float(quantizer.threshold_step) == float(quantizer.level_step.detach()) == pytest.approx(start, rel=1e-6)
        assert float(quantizer.shrink) == 1
        each = DecoupledQuantizer(bits, per_channel=True).fit(weight)
        assert each.threshold_step.shape == each.level_step.shape == (6, 1, 1, 1)
        alone = [np.std(channel.double().numpy(), ddof=1) / 2 ** (bits - 2) for channel in weight]
        assert each.threshold_step.flatten().tolist() == pytest.approx(alone, rel=1e-6)
        assert torch.equal(each.threshold_step, each.level_step)
        with torch.no_grad():
            each.level_step.mul_(2)
        assert not torch.equal(each.threshold_step, each.level_step), "two tensors"


def test_per_channel_is_a_loop_over_channels() -> None:
    weight, upstream = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    each = quantizer_of(
        3, [[[[0.1]]], [[[0.2]]], [[[0.4]]], [[[0.8]]]], [[[[0.3]]], [[[0.1]]], [[[0.2]]], [[[0.5]]]], 0.6
    )
    (each(weight) * upstream).sum().backward()
    assert each.level_step.grad is not None
    for channel in range(4):
        alone = quantizer_of(
            3, float(each.threshold_step[channel]), float(each.level_step[channel].detach()), float(each.shrink)
        )
        value = alone(weight[channel])
        (value * upstream[channel]).sum().backward()
        assert torch.equal(each(weight)[channel], value)
        assert torch.equal(each.codes(weight)[channel], alone.codes(weight[channel]))
        assert torch.equal(each.centres(weight)[channel], alone.centres(weight[channel]))
        assert torch.equal(each.threshold_distance(weight)[channel], alone.threshold_distance(weight[channel]))
        torch.testing.assert_close(each.level_step.grad[channel].view(()), alone.level_step.grad)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradients(bits: int) -> None:
    weight, upstream = normal(6, 50).double(), normal(6, 50, seed=1).double()
    weight[0, 0], weight[0, 1] = 1e3, -1e3  # far beyond the outermost levels
    quantizer = quantizer_of(bits, 0.3, 0.5, 0.4).double()
    leaf = weight.clone().requires_grad_()
    (quantizer(leaf) * upstream).sum().backward()
    assert torch.equal(leaf.grad, upstream), "1 everywhere"  # type: ignore[arg-type]
    shrink = float(quantizer.shrink)
    _, codes = naive(weight, thresholds_of(bits, shrink * float(quantizer.threshold_step)), levels_of(bits, 1.0))
    pairs = zip(upstream.flatten().tolist(), codes, strict=True)
    expected = sum(gradient * shrink * (code + 0.5) for gradient, code in pairs)
    assert quantizer.level_step.grad is not None
    assert float(quantizer.level_step.grad) == pytest.approx(expected, rel=1e-12)
    assert [name for name, _ in quantizer.named_parameters()] == ["level_step"]


@pytest.mark.parametrize("per_channel", [False, True])
def test_other_bit_widths(per_channel: bool) -> None:
    weight = normal(5, 400)
    quantizer = DecoupledQuantizer(3, per_channel).fit(weight)
    with torch.no_grad():
        quantizer.level_step.mul_(1.7)
    quantizer.shrink.fill_(0.5)
    for scale in ("keep_step", "keep_range"):
        assert quantizer.at_bits(3, scale) is quantizer  # type: ignore[arg-type]
        for bits in (2, 4, 8):
            other: Any = quantizer.at_bits(bits, scale)  # type: ignore[arg-type]
            factor = 1 if scale == "keep_step" else 2.0 ** (3 - bits)
            assert torch.equal(other.threshold_step, quantizer.threshold_step * factor)
            assert torch.equal(other.level_step, quantizer.level_step * factor)
            assert (float(other.shrink), other.bits, other.per_channel) == (0.5, bits, per_channel)
            assert other.levels == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if scale == "keep_range":
                assert torch.equal(
                    other.threshold_step, DecoupledQuantizer(bits, per_channel).fit(weight).threshold_step
                )
    finer: Any = quantizer.at_bits(4, "keep_range")
    assert torch.equal(finer.codes(weight).int().div(2, rounding_mode="floor"), quantizer.codes(weight).int()), "nested"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_without_spread(bits: int, per_channel: bool) -> None:
    zero, equal = torch.zeros(3, 5), torch.full((3, 5), 0.1)
    for weight in (zero, torch.cat([torch.zeros(1, 5), normal(2, 5)]), equal, -equal, normal(3, 1), torch.ones(1, 1)):
        quantizer = DecoupledQuantizer(bits, per_channel).fit(weight)
        leaf = weight.clone().requires_grad_()
        value = quantizer(leaf)
        value.sum().backward()
        assert quantizer.level_step.grad is not None
        assert bool(quantizer.level_step.grad.isfinite().all())
        assert torch.equal(leaf.grad, torch.ones_like(weight))  # type: ignore[arg-type]
        assert bool(quantizer.threshold_distance(weight).isfinite().all())
        if per_channel or not weight.any():
            torch.testing.assert_close(value[weight == 0], torch.full_like(value[weight == 0], 5e-6))
    for sign in (1, -1):
        own = DecoupledQuantizer(bits, per_channel).fit(sign * equal)
        torch.testing.assert_close(own.threshold_step.flatten().amax(), torch.tensor(0.1 / 2 ** (bits - 2)))
    assert math.isclose(float(DecoupledQuantizer(bits).fit(zero).threshold_step), 1e-5, rel_tol=1e-6)


def test_the_floor_of_the_level_step() -> None:
    quantizer = DecoupledQuantizer(3, per_channel=True).fit(normal(4, 9))
    before = quantizer.level_step.detach().clone()
    with torch.no_grad():
        quantizer.level_step[2] = -1.0
    quantizer.project()
    assert float(quantizer.level_step[2].detach()) == pytest.approx(1e-5)
    before[2] = quantizer.level_step[2].detach()
    assert torch.equal(quantizer.level_step, before)


def test_copies_are_equal_and_apart_and_bits_are_checked() -> None:
    weight = normal(4, 6)
    quantizer = DecoupledQuantizer(3).fit(weight)
    quantizer.shrink.fill_(0.3)
    copied = deepcopy(quantizer)
    loaded = DecoupledQuantizer(3).fit(torch.ones_like(weight))
    loaded.load_state_dict(quantizer.state_dict())
    for other in (copied, loaded):
        assert torch.equal(other(weight), quantizer(weight))
        assert torch.equal(other.codes(weight), quantizer.codes(weight))
    copied.shrink.fill_(1.0)
    assert not torch.equal(copied(weight), quantizer(weight))
    for bits in (1, 9, True):
        with pytest.raises(UserError, match=r"2 to 8"):
            DecoupledQuantizer(bits)
    with pytest.raises(TypeError, match="no step"):
        quantizer.step(weight)
