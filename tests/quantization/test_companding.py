"""The companding quantizer against plain Python and numpy, the uniform grid, brute force, and for any curve at all."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from quantizers_common import BITS, normal
from torch import Tensor, nn

from harness.quantization import CompandingQuantizer, WeightQuantizer
from harness.quantization.companding import Curve, compress, curve, expand, expand_codes, spread


class Uniform(WeightQuantizer):
    """The uniform quantizer of a given step."""

    def __init__(self, bits: int, given: Tensor) -> None:
        super().__init__(bits)
        self.given = given

    def step(self, weight: Tensor) -> Tensor:
        return self.given


def logs(count: int = 16, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(bits: int, weight: Tensor, seed: int = 0, size: float = 1.0, **knobs: Any) -> CompandingQuantizer:
    """Fitted to a weight, with a random curve; in the weight's precision."""
    quantizer = CompandingQuantizer(bits, **knobs).fit(weight)
    if quantizer.log_slopes is not None:
        quantizer.log_slopes = nn.Parameter(logs(quantizer.intervals, seed, size).to(weight.dtype))
    return quantizer.to(weight.dtype)


# The compressor and the expander, number by number


def naive_knots(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets on [0, 1], by the formulas."""
    p = np.exp(theta) / np.exp(theta).sum()
    return p * len(theta), np.concatenate([[0.0], np.cumsum(p)])


def naive_compress(v: float, theta: np.ndarray) -> float:
    gamma, beta = naive_knots(theta)
    k = min(int(v * len(theta)), len(theta) - 1)
    return float(gamma[k] * (v - k / len(theta)) + beta[k])


def naive_expand(y: float, theta: np.ndarray) -> float:
    gamma, beta = naive_knots(theta)
    k = max(k for k in range(len(theta)) if k == 0 or beta[k] <= y)
    return float((y - beta[k]) / gamma[k] + k / len(theta))


def naive_quantize(x: float, reach: float, theta: np.ndarray, high: int) -> float:
    v = abs(x) / reach
    value = naive_expand(round(high * naive_compress(v, theta)) / high, theta) if v < 1 else 1.0
    return math.copysign(reach * value, x)


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("high", [1.0, 3.0, 127.0])
def test_the_formulas(count: int, high: float) -> None:
    theta, points = logs(count), torch.linspace(0, 1, 301, dtype=torch.float64)
    by = curve(theta, high)
    wanted = [high * naive_compress(v, theta.numpy()) for v in points.tolist()]
    np.testing.assert_allclose(compress(high * points, by), wanted, rtol=1e-12, atol=1e-12)
    wanted = [high * naive_expand(v, theta.numpy()) for v in points.tolist()]
    np.testing.assert_allclose(expand(high * points, by), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by.slopes, naive_knots(theta.numpy())[0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", range(2, 65))
def test_equal_slopes_are_the_identity_bit_for_bit(count: int, dtype: torch.dtype) -> None:
    for bits in BITS:
        high = 2 ** (bits - 1) - 1
        for level in (0.0, 0.3, -7.0):
            by = curve(torch.full((count,), level), high, dtype)
            x = high * torch.rand(500, generator=torch.Generator().manual_seed(count), dtype=dtype)
            x = torch.cat([x, by.inputs, torch.nextafter(by.inputs[1:], by.inputs[:-1]), torch.arange(high + 1.0)])
            assert torch.equal(compress(x.to(dtype), by), x.to(dtype))
            assert torch.equal(expand(x.to(dtype), by), x.to(dtype))


@pytest.mark.parametrize("count", [2, 3, 16, 64])
@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("bits", [3, 8])
def test_any_curve_is_monotone_from_0_to_high_and_has_an_inverse(count: int, size: float, bits: int) -> None:
    high = 2.0 ** (bits - 1) - 1
    for seed in range(10):
        by = curve(logs(count, seed, size).float(), high)
        assert bool((by.slopes > 0).all())
        for knots in by[:2]:
            assert bool((knots.diff() > 0).all())
            assert (float(knots[0]), float(knots[-1])) == (0.0, high)
        near = torch.cat([by.inputs, by.outputs, torch.arange(high + 1), high * torch.rand(2000)])
        around = [near]
        for _ in range(3):  # where intervals meet, rounding could undo the order
            around += [torch.nextafter(around[-1], torch.tensor(high))]
            near = torch.nextafter(near, torch.tensor(0.0))
            around += [near]
        x = torch.cat(around).clamp(0, high).sort().values
        for there, back in ((compress, expand), (expand, compress)):
            y = there(x, by)
            assert bool((y.diff() >= 0).all())
            assert (float(y[0]), float(y[-1])) == (0.0, high), "exactly"
            assert bool((y >= 0).all() & (y <= high).all())
            # an ulp of y is worth this much of x where the way back is steepest
            steepest = float(torch.maximum(by.slopes, 1 / by.slopes).max())
            assert float((back(y, by) - x).abs().max()) <= 1e-6 * high * (1 + steepest)


def test_slopes_are_a_softmax_and_shifts_change_nothing() -> None:
    theta = logs().requires_grad_()
    assert torch.allclose(curve(theta, 3.0).slopes, 16 * theta.softmax(0))
    assert torch.equal(curve(theta + 2, 3.0).inputs, curve(theta, 3.0).inputs)
    torch.testing.assert_close(curve(theta + 2, 3.0).outputs, curve(theta, 3.0).outputs)
    (gradient,) = torch.autograd.grad((curve(theta, 3.0).outputs * logs(17, 1)).sum(), theta)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert float(gradient.abs().min()) > 0


def test_a_slope_has_a_floor_and_large_values_no_overflow() -> None:
    slopes = curve(torch.tensor([0.0, -10.0, -11.0, -1e30]), 1.0).slopes
    assert float(slopes[1] / slopes[0]) == pytest.approx(math.exp(-10), rel=1e-6)
    assert float(slopes[1]) == float(slopes[2]) == float(slopes[3])
    assert bool(curve(torch.tensor([1e30, 0.0]), 1.0).slopes.isfinite().all())


@pytest.mark.parametrize("bits", [3, 8])
def test_the_table_of_whole_codes_is_the_expander_with_its_gradients(bits: int) -> None:
    high = 2 ** (bits - 1) - 1
    theta = logs(seed=bits).requires_grad_()
    codes = torch.arange(high + 1).repeat(3).double().requires_grad_()
    upstream = logs(len(codes), 1)
    results = []
    for values in (expand_codes(codes, high, curve(theta, high)), expand(codes, curve(theta, high))):
        first = torch.autograd.grad((values * upstream).sum(), (codes, theta), create_graph=True)
        second = torch.autograd.grad((first[0] * upstream).sum(), theta)
        results.append((values, *first, *second))
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
        assert bool(wanted.any())


def test_a_level_on_a_knot_belongs_to_the_interval_that_begins_there() -> None:
    by = Curve(torch.tensor([0, 1.5, 3]), torch.tensor([0.0, 1, 3]), torch.tensor([2 / 3, 4 / 3]))
    codes = torch.arange(4.0).requires_grad_()
    for values in (expand_codes(codes, 3, by), expand(codes, by)):
        torch.testing.assert_close(values.detach(), torch.tensor([0, 1.5, 2.25, 3]))
        (slopes,) = torch.autograd.grad(values.sum(), codes)
        torch.testing.assert_close(slopes, torch.tensor([1.5, 0.75, 0.75, 0.75]))
    x = torch.tensor([0.0, 1.5, 3.0]).requires_grad_()
    (slopes,) = torch.autograd.grad(compress(x, by).sum(), x)
    torch.testing.assert_close(slopes, torch.tensor([2 / 3, 4 / 3, 4 / 3]))


def test_what_is_no_number_stays_none() -> None:
    weight = normal(3, 4)
    quantizer = shaped(3, weight, normalize=False)
    weight[1, 2], weight[0, 0], weight[2, 2] = torch.nan, torch.inf, -torch.inf
    result = quantizer(weight)
    assert torch.equal(result.isnan(), weight.isnan())
    assert float(result[0, 0]) == -float(result[2, 2]) == pytest.approx(3 * float(quantizer.step(weight).detach()))


def test_memory_layout_is_kept() -> None:
    weight = normal(6, 5, 3, 3).to(memory_format=torch.channels_last)
    quantizer = shaped(4, weight)
    for result in (quantizer(weight), quantizer.codes(weight), quantizer.threshold_distance(weight)):
        assert result.stride() == weight.stride()
    # A sum in another order may move the deviation by an ulp.
    torch.testing.assert_close(quantizer(weight), quantizer(weight.contiguous()))
    part = normal(8, 20)[:, ::3]
    torch.testing.assert_close(quantizer(part), quantizer(part.contiguous()))
    assert torch.equal(quantizer.codes(part), quantizer.codes(part.contiguous()))
    assert compress(torch.tensor(0.4), curve(torch.zeros(4), 3.0)).shape == ()


# The quantizer


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_equal_slopes_are_the_uniform_quantizer_bit_for_bit(bits: int, per_channel: bool, normalize: bool) -> None:
    for seed in range(20):
        weight, upstream = 0.07 * normal(11, 23, seed=seed), normal(11, 23, seed=seed + 100)
        weight[0, :4] = torch.tensor([0.0, -0.0, 5.0, -5.0])
        own = CompandingQuantizer(bits, per_channel, 16 + seed % 5, normalize, start=2.0).fit(weight)
        step = own.step(weight).detach()
        assert step.shape == ((11, 1) if per_channel else ())
        uniform, mine = Uniform(bits, step), own(weight)
        assert torch.equal(mine.view(torch.int32), uniform(weight).view(torch.int32)), "signs of zeros, too"
        assert torch.equal(own.codes(weight), uniform.codes(weight))
        torch.testing.assert_close(
            own.threshold_distance(weight), uniform.threshold_distance(weight), atol=1e-4, rtol=0
        )
        if not normalize:  # otherwise the weights' deviation takes part, too
            leaf = weight.clone().requires_grad_()
            (wanted,) = torch.autograd.grad((uniform(leaf) * upstream).sum(), leaf)
            (found,) = torch.autograd.grad((own(leaf) * upstream).sum(), leaf)
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)  # times s, over s


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_values_and_codes_are_the_formulas(bits: int, normalize: bool) -> None:
    weight, high = 0.2 * normal(9, 40).double(), 2 ** (bits - 1) - 1
    quantizer = shaped(bits, weight, normalize=normalize, start=1.7)
    assert quantizer.log_slopes is not None
    theta, deviation = quantizer.log_slopes.detach().numpy(), float(weight.numpy().std())
    reach = 1.7 * deviation
    wanted = [naive_quantize(w, reach, theta, high) for w in weight.flatten().tolist()]
    np.testing.assert_allclose(quantizer(weight).detach().flatten(), wanted, rtol=1e-9, atol=1e-12)
    codes = [
        int(math.copysign(round(high * naive_compress(min(abs(w) / reach, 1.0), theta)), w))
        for w in weight.flatten().tolist()
    ]
    assert quantizer.codes(weight).flatten().tolist() == codes
    assert float((weight.abs() > reach).float().mean()) > 0.05, "some are outside"


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("bits", BITS)
def test_levels_symmetry_and_order(bits: int, size: float) -> None:
    high = 2 ** (bits - 1) - 1
    weight = torch.linspace(-2, 2, 40_001)
    for seed in range(5):
        quantizer = shaped(bits, weight, seed, size, start=1.5)
        values, codes = quantizer(weight).detach(), quantizer.codes(weight)
        assert codes.dtype == torch.int8
        assert torch.equal(quantizer(-weight).detach(), -values)
        assert torch.equal(quantizer.codes(-weight), -codes)
        assert bool((values.diff() >= 0).all())
        assert bool((codes.int().diff() >= 0).all())
        assert (int(codes.min()), int(codes.max())) == (-high, high)
        level_of = dict(zip(codes.tolist(), values.tolist(), strict=True))
        if size < 10:  # a level in an interval that is all but flat may have no weight of this grid
            assert len(level_of) == 2 * high + 1
        assert torch.equal(values, torch.tensor([level_of[code] for code in codes.tolist()])), "one value a code"
        assert len(values.unique()) == len(level_of)
        assert level_of[0] == 0
        assert level_of[high] == pytest.approx(1.5 * float(weight.double().std(correction=0)), rel=1e-5)
        quantizer.normalize = False  # the deviation of the levels is another
        values, codes = quantizer(weight).detach(), quantizer.codes(weight)
        assert torch.equal(quantizer.codes(values), codes), "a level is its own"


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_threshold_distance_against_a_search_for_thresholds(bits: int) -> None:
    weight = 0.3 * normal(40, 25).double()
    quantizer = shaped(bits, weight, start=1.3)
    theta = np.zeros(16) if quantizer.log_slopes is None else quantizer.log_slopes.detach().numpy()
    step, high = float(quantizer.step(weight).detach()), 2 ** (bits - 1) - 1
    reach = high * step

    def scale(w: float) -> float:
        inside = math.copysign(high * naive_compress(min(abs(w) / reach, 1.0), theta), w)
        return inside + math.copysign(max(abs(w) - reach, 0) / step, w)

    def code(w: float) -> int:
        return round(scale(w)) if abs(w) < reach else int(math.copysign(high, w))

    thresholds = []
    for lower in range(-high, high):
        low, up = -2 * reach, 2 * reach
        for _ in range(80):
            middle = (low + up) / 2
            low, up = (middle, up) if code(middle) <= lower else (low, middle)
        thresholds.append(up)
    wanted = [min(abs(scale(w) - scale(t)) for t in thresholds) for w in weight.flatten().tolist()]
    found = quantizer.threshold_distance(weight).flatten()
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    outside = weight.abs().flatten() > reach
    assert bool((found[outside] > 0.5).all())
    assert bool((found[~outside] <= 0.5 + 1e-12).all())
    assert bool(outside.any())


# Gradients


def naive_forward(w: Tensor, reach: Tensor, theta: Tensor, high: int) -> Tensor:
    """The formulas one weight at a time, in float64 on [0, 1], straight through round."""
    slopes = theta.softmax(0) * len(theta)
    offsets = torch.cat([theta.new_zeros(1), theta.softmax(0).cumsum(0)])
    results = []
    for x in w.flatten():
        v = x.abs() / reach
        if float(v.detach()) >= 1:
            results.append(x.sign() * reach)
            continue
        k = int(float(v.detach()) * len(theta))
        y = slopes[k] * (v - k / len(theta)) + offsets[k]
        rounded = y + (torch.round(y * high) / high - y).detach()
        j = max(j for j in range(len(theta)) if float(offsets[j].detach()) <= float(rounded.detach()) + 1e-14)
        results.append(x.sign() * reach * ((rounded - offsets[j]) / slopes[j] + j / len(theta)))
    return torch.stack(results).view_as(w)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_gradients_are_those_of_the_naive_formula(bits: int, normalize: bool) -> None:
    weight, upstream = 0.3 * normal(8, 30).double(), normal(8, 30, seed=1).double()
    quantizer = shaped(bits, weight, seed=bits, start=1.6, normalize=normalize)
    leaf, high = weight.clone().requires_grad_(), 2 ** (bits - 1) - 1
    assert quantizer.log_slopes is not None
    ours = torch.autograd.grad(
        (quantizer(leaf) * upstream).sum(), (leaf, quantizer.learned_range, quantizer.log_slopes)
    )
    reach = quantizer.learned_range.detach().clone().requires_grad_()
    theta = quantizer.log_slopes.detach().clone().requires_grad_()
    deviation = leaf.std(correction=0) if normalize else 1.0
    value = naive_forward(leaf, reach * deviation, theta, high)
    torch.testing.assert_close(quantizer(leaf), value, rtol=1e-9, atol=1e-12)
    theirs = torch.autograd.grad((value * upstream).sum(), (leaf, reach, theta))
    for own, wanted in zip(ours, theirs, strict=True):
        assert float(wanted.abs().max()) > 1e-3
        torch.testing.assert_close(own, wanted, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_a_weight_is_one_within_an_interval_a_quotient_across_and_zero_outside() -> None:
    weight = torch.linspace(-1.3, 1.3, 1001, dtype=torch.float64).requires_grad_()
    quantizer = shaped(4, weight.detach(), normalize=False)
    quantizer.learned_range = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    assert quantizer.log_slopes is not None
    (gradient,) = torch.autograd.grad(quantizer(weight).sum(), weight)
    theta = quantizer.log_slopes.detach().numpy()
    gamma, _ = naive_knots(theta)
    interval = np.minimum((weight.detach().abs() * 16).long().numpy(), 15)
    level = np.minimum((quantizer(weight).detach().abs() * 16 + 1e-9).long().numpy(), 15)
    wanted = np.where(weight.detach().abs() <= 1, gamma[interval] / gamma[level], 0.0)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9)
    same = (interval == level) & (np.abs(weight.detach().numpy()) <= 1)
    assert 0.1 < same.mean() < 0.9
    np.testing.assert_allclose(gradient[torch.from_numpy(same)], 1.0, rtol=1e-12)
    assert float(gradient[500]) == pytest.approx(1.0), "at 0, too"


def test_the_bound_is_inside_with_room_for_an_ulp() -> None:
    weight = torch.tensor([1.0, -1.0, 1 + 1e-6, 1.01]).requires_grad_()
    quantizer = CompandingQuantizer(3, normalize=False, start=1.0)
    (gradient,) = torch.autograd.grad(quantizer(weight).sum(), weight)
    assert gradient.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])


def test_the_range_has_the_gradient_of_the_bound_outside_and_the_rounding_error_inside() -> None:
    """With equal slopes: dQ/dalpha = Q / alpha - (x / alpha) [inside]."""
    weight, upstream = normal(5, 60).double(), normal(5, 60, seed=1).double()
    quantizer = CompandingQuantizer(3, normalize=False, start=1.1).fit(weight).double()
    (found,) = torch.autograd.grad((quantizer(weight) * upstream).sum(), quantizer.learned_range)
    reach = float(quantizer.learned_range)
    slopes = (quantizer(weight).detach() - weight * (weight.abs() < reach)) / reach
    assert float(found) == pytest.approx(float((slopes * upstream).sum()), rel=1e-10)


def test_weights_outside_teach_the_curve_nothing() -> None:
    weight = torch.tensor([[5.0, -7.0, 9.0]])
    quantizer = shaped(3, weight, normalize=False)
    quantizer.learned_range = nn.Parameter(torch.tensor(1.0))
    quantizer(weight).abs().sum().backward()
    assert quantizer.log_slopes is not None
    assert quantizer.log_slopes.grad is not None
    assert float(quantizer.log_slopes.grad.abs().max()) < 1e-5  # rounding of sums that cancel
    assert float(quantizer.learned_range.grad) == pytest.approx(3.0)  # type: ignore[arg-type]


def test_the_deviation_is_in_the_graph() -> None:
    weight, upstream = 0.2 * normal(4, 9).double(), normal(4, 9, seed=1).double()
    quantizer = CompandingQuantizer(3, start=2.0).fit(weight).double()
    leaf = weight.clone().requires_grad_()
    (found,) = torch.autograd.grad((quantizer(leaf) * upstream).sum(), leaf)
    step = quantizer.step(weight).detach()
    codes, scaled = quantizer.codes(weight).double(), weight / step
    inside = scaled.abs() <= 3
    of_step = (upstream * torch.where(inside, codes - scaled, codes)).sum()
    deviation = weight.std(correction=0)
    of_deviation = (weight - weight.mean()) / (weight.numel() * deviation)
    torch.testing.assert_close(found, upstream * inside + of_step * step / deviation * of_deviation)


@pytest.mark.parametrize("per_channel", [False, True])
def test_it_can_be_differentiated_twice(per_channel: bool) -> None:
    weight = normal(4, 9).double().requires_grad_()
    quantizer = shaped(3, weight.detach(), per_channel=per_channel)
    (first,) = torch.autograd.grad(quantizer(weight).pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.abs().sum(), weight)
    assert bool(second.isfinite().all())
    assert bool(second.any())


# What it does with unusual weights


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_zeros_and_equal_weights(bits: int, per_channel: bool, normalize: bool) -> None:
    for value in (0.0, 0.1, -3.3, 1e-30, 1e4):
        weight = torch.full((5, 7), value, requires_grad=True)
        quantizer = CompandingQuantizer(bits, per_channel, normalize=normalize).fit(weight)
        result = quantizer(weight)
        result.sum().backward()
        assert bool(result.isfinite().all())
        for parameter in (weight, quantizer.learned_range, quantizer.log_slopes):
            assert parameter is None or parameter.grad is None or bool(parameter.grad.isfinite().all())
        if value == 0.0:
            assert not result.any()
            assert not quantizer.codes(weight).any()
            assert torch.equal(weight.grad, torch.ones(5, 7)), "so that it can leave zero"  # type: ignore[arg-type]
        assert bool(quantizer.threshold_distance(weight).isfinite().all())


def test_the_spread() -> None:
    weight = 2 + 0.3 * normal(6, 4, 3, 3)
    assert float(spread(weight)) == pytest.approx(float(weight.numpy().std()), rel=1e-6)
    each = weight.numpy().reshape(6, -1).std(axis=1)
    assert spread(weight, per_channel=True).shape == (6, 1, 1, 1)
    np.testing.assert_allclose(spread(weight, per_channel=True).flatten(), each, rtol=1e-5)
    for value in (0.0, 0.1, 1 / 3, -1e4):
        assert float(spread(torch.full((123, 7), value))) == 1.0
    assert float(spread(1e-6 * normal(50, 50))) == pytest.approx(1e-6, rel=0.1)
    mixed = torch.stack([torch.full((9,), 0.1), normal(9)])
    assert float(spread(mixed, per_channel=True)[0]) == 1.0
    assert float(spread(mixed, per_channel=True)[1]) != 1.0


def test_scaled_weights_have_the_same_codes_when_normalized() -> None:
    weight = 0.1 * normal(20, 30)
    quantizer = shaped(4, weight)
    for factor in (2.0**-20, 2.0**10):
        assert torch.equal(quantizer.codes(factor * weight), quantizer.codes(weight))
        assert torch.equal(quantizer(factor * weight), factor * quantizer(weight))
    plain = shaped(4, weight, normalize=False)
    assert not torch.equal(plain.codes(2 * weight), plain.codes(weight))


@pytest.mark.parametrize("normalize", [True, False])
def test_fit_and_floor_of_the_range(normalize: bool) -> None:
    weight = normal(6, 30) * torch.arange(1.0, 7.0)[:, None]
    for per_channel in (False, True):
        quantizer = CompandingQuantizer(3, per_channel, normalize=normalize, start=2.5).fit(weight)
        assert quantizer.learned_range.shape == ((6, 1) if per_channel else ())
        deviations = weight.numpy().std(axis=1) if per_channel else weight.numpy().std()
        np.testing.assert_allclose(3 * quantizer.step(weight).detach().squeeze(), 2.5 * deviations, rtol=1e-5)
        if normalize:
            assert bool((quantizer.learned_range == 2.5).all())
    with torch.no_grad():
        quantizer.learned_range[2] = -1.0
    kept = quantizer.learned_range.detach().clone()
    quantizer.project()
    assert quantizer.learned_range[2].item() == pytest.approx(1e-5)
    kept[2] = quantizer.learned_range[2].detach()
    assert torch.equal(quantizer.learned_range, kept)


# Other bit-widths


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_at_other_bits(bits: int, normalize: bool, per_channel: bool) -> None:
    weight = 0.4 * normal(5, 30)
    quantizer = shaped(3, weight, normalize=normalize, per_channel=per_channel, intervals=5, start=2.2)
    assert quantizer.log_slopes is not None
    for scale in ("keep_step", "keep_range"):
        other = quantizer.at_bits(bits, scale)  # type: ignore[arg-type]
        assert isinstance(other, CompandingQuantizer)
        assert other.bits == bits
        assert (other is quantizer) == (bits == 3)
        assert (other.per_channel, other.normalize, other.intervals) == (per_channel, normalize, 5)
        if scale == "keep_step":
            torch.testing.assert_close(other.step(weight), quantizer.step(weight))
        else:
            assert torch.equal(other.learned_range, quantizer.learned_range)
        if bits == 2:
            assert other.log_slopes is None
        else:
            assert other.log_slopes is not None
            assert torch.equal(other.log_slopes, quantizer.log_slopes)
            assert (other.log_slopes is quantizer.log_slopes) == (bits == 3)
        assert max(len(row.unique()) for row in other(weight)) <= 2**bits - 1


def test_two_bits_are_ternary_and_plain() -> None:
    weight = normal(9, 40)
    quantizer = CompandingQuantizer(2, start=1.2).fit(weight)
    assert [name for name, _ in quantizer.named_parameters()] == ["learned_range"]
    assert quantizer.compressor().slopes.tolist() == [1.0] * 16
    reach = 1.2 * weight.std(correction=0)
    wanted = torch.where(weight.abs() / reach > 0.5, weight.sign(), 0.0)
    torch.testing.assert_close(quantizer(weight).detach(), reach * wanted)
    assert torch.equal(quantizer.codes(weight).float(), wanted)
    more = quantizer.at_bits(4, "keep_range")
    assert isinstance(more, CompandingQuantizer)
    assert more.log_slopes is not None
    assert not more.log_slopes.any()


def test_state_goes_through_a_checkpoint() -> None:
    weight = normal(5, 30)
    for bits in (2, 3):
        source, copied = shaped(bits, weight, per_channel=True), CompandingQuantizer(bits, per_channel=True).fit(weight)
        copied.load_state_dict(copy.deepcopy(source.state_dict()))
        assert torch.equal(copied(weight), source(weight))


# What it is for


def test_learned_levels_of_a_normal_beat_the_best_uniform_ones() -> None:
    """Squared error of N(0, 1) with 7 levels: 0.0469 by uniform and 0.0440 by any ones at best (Max 1960, table I)."""
    points = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    weight = 2**0.5 * torch.erfinv(points)
    steps = torch.linspace(0.5, 0.8, 61, dtype=torch.float64).tolist()
    errors = [float((step * (weight / step).round().clamp(0, 3) - weight).square().mean()) for step in steps]
    assert min(errors) == pytest.approx(0.0469, abs=1e-4)
    weight = weight[::5]
    quantizer = CompandingQuantizer(3, normalize=False).double()
    quantizer.learned_range = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    best = math.inf
    for index in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - index / 300)
        error = (quantizer(weight) - weight).square().mean()
        best = min(best, float(error.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert 0.0438 < best < 0.0448
    assert float(quantizer.compressor().slopes[0]) > float(quantizer.compressor().slopes[-1])
