"""The compressor and the expander against plain numpy, and for any curve at all."""

import math

import numpy as np
import pytest
import torch
from companding_common import logs, naive_compress, naive_expand, naive_knots, shaped
from quantizers_common import BITS, normal

from harness.quantization.curve import Curve, compress, curve, expand, expand_codes


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
