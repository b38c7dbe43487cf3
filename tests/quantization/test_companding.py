"""The companding quantizer against plain Python and numpy, the uniform grid, and brute force."""

import copy
import math

import numpy as np
import pytest
import torch
from companding_common import Uniform, naive_compress, naive_quantize, shaped
from quantizers_common import BITS, normal
from torch import nn

from harness.quantization import CompandingQuantizer
from harness.quantization.companding import spread


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
    quantizer.learned_range, quantizer.fitted = nn.Parameter(torch.tensor(2.0, dtype=torch.float64)), True
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
    slopes = quantizer.compressor().slopes.detach()
    assert slopes[0] > slopes[-1]
