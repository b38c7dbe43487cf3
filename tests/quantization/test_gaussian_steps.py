"""Steps for Gaussians: the table against the exact error, and both quantizers against a loop over channels."""

import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization.activations import Rows, StaticQuantizer
from harness.quantization.gaussian_steps import (
    STEPS,
    DynamicGaussianQuantizer,
    GaussianQuantizer,
    gaussian_step,
)

SIGNED, POSITIVE = torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 1.0])


def dynamic(bits: int = 4, example: Tensor = SIGNED, **more: Any) -> DynamicGaussianQuantizer:
    return DynamicGaussianQuantizer(bits, **more).fit(example)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed: int = 0) -> Tensor:
    """(3, 5, 6, 7), float64, whose channels differ in mean and spread by image."""
    spreads, means = 3 ** normal(3, 5, 1, 1, seed=seed + 1), normal(3, 5, 1, 1, seed=seed + 2)
    return means + spreads * normal(3, 5, 6, 7, seed=seed)


# The table


def error(step: float, bits: int) -> float:
    """The mean squared error of the mid-rise quantizer on N(0, 1), exact."""
    half = 2 ** (bits - 1)
    density = [math.exp(-((k * step) ** 2) / 2) / math.sqrt(2 * math.pi) for k in range(half)] + [0.0]
    below = [math.erf(k * step / math.sqrt(2)) / 2 for k in range(half)] + [0.5]
    total = 1.0
    for k in range(half):  # of the positive half, doubled
        level = (k + 0.5) * step
        total += 2 * (level**2 * (below[k + 1] - below[k]) - 2 * level * (density[k] - density[k + 1]))
    return total


@pytest.mark.parametrize("bits", STEPS)
def test_the_table_has_the_least_error_on_a_gaussian(bits: int) -> None:
    tried = [STEPS[bits] + offset / 10_000 for offset in range(-40, 41)]
    assert round(min(tried, key=lambda step: error(step, bits)), 3) == STEPS[bits]


def test_the_released_index_has_twice_the_error() -> None:
    assert [round(error(gaussian_step(bits), bits), 3) for bits in (2, 4)] == [0.119, 0.012]
    assert [round(error(gaussian_step(bits, "index"), bits), 3) for bits in (2, 4)] == [0.214, 0.029]
    assert {gaussian_step(bits, "constant") for bits in range(2, 9)} == {1.596}
    assert gaussian_step(4, "constant", 8) == 0.057


@pytest.mark.parametrize(("bits", "relative"), [(2, 0.0486), (3, 0.0130), (4, 0.0038)])
def test_one_table_serves_inputs_after_a_relu(bits: int, relative: float) -> None:
    x = normal(1, 1, 400, 500).relu()
    found = float((dynamic(bits, POSITIVE)(x) - x).square().mean() / x.square().mean())
    assert found == pytest.approx(relative, rel=0.03)


# Weights


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_are_in_the_middle_of_bins_of_the_deviation(bits: int) -> None:
    weight = 0.3 * normal(6, 4, 3, 3) + 0.1
    width, half = statistics.stdev(weight.flatten().tolist()) * STEPS[bits], 2 ** (bits - 1)
    wanted = [width * (min(max(math.floor(w / width), -half), half - 1) + 0.5) for w in weight.flatten().tolist()]
    quantizer = GaussianQuantizer(bits)
    torch.testing.assert_close(quantizer(weight).flatten().tolist(), wanted, rtol=1e-12, atol=0)
    assert torch.equal(quantizer.values(weight)[0][(quantizer.codes(weight) + half).long()], quantizer(weight))
    assert len(quantizer(10 * weight**3).unique()) <= 2**bits


def test_gradient_of_weights_and_other_bits() -> None:
    weight = normal(5, 7).requires_grad_()
    GaussianQuantizer(2)(weight).backward(torch.full_like(weight, 2.0))
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0)), "clipped values, too"  # type: ignore[arg-type]
    four, fixed = GaussianQuantizer(4), weight.detach()
    assert torch.equal(four.at_bits(3, "keep_step").width(fixed), four.width(fixed))  # type: ignore[operator]
    torch.testing.assert_close(four.at_bits(3, "keep_range").width(fixed), 2 * four.width(fixed))  # type: ignore[operator]
    torch.testing.assert_close(
        GaussianQuantizer(4, quirk="index").width(fixed) / four.width(fixed), fixed.new_tensor(0.586 / 0.335)
    )
    assert float(GaussianQuantizer(3)(torch.full((2, 3), 0.7)).max()) > 0.3, "weights that are all alike do not vanish"


# Activations, against a loop


def naive_signed(values: list[float], bits: int, deviation: float) -> list[float]:
    mean, half, width = statistics.mean(values), 2 ** (bits - 1), deviation * STEPS[bits]
    return [mean + width * (min(max(math.floor((x - mean) / width), -half), half - 1) + 0.5) for x in values]


def naive_positive(values: list[float], bits: int, deviation: float) -> list[float]:
    width = deviation * STEPS[bits] or 1.0
    return [width * min(max(round(x / width), 0), 2**bits - 1) for x in values]


def positive_deviation(values: list[float]) -> float:
    above = [x for x in values if x > 0]
    count = len(above) + 1
    return math.sqrt(sum(x * x for x in above) / count - (sum(above) / count) ** 2)


def naive(x: Tensor, bits: int, sigma_bits: int | None, signed: bool) -> Tensor:
    """x: (N, C, places). Of quantized deviations: those whose bins are above 0."""
    found = torch.empty_like(x)
    for image, channels in enumerate(x.tolist()):
        deviations = [statistics.stdev(each) if signed else positive_deviation(each) for each in channels]
        if sigma_bits is not None:
            coarse = naive_signed_of(deviations, sigma_bits)
            assert min(coarse) > 0
            deviations = coarse
        for channel, (values, deviation) in enumerate(zip(channels, deviations, strict=True)):
            rounded = (naive_signed if signed else naive_positive)(values, bits, deviation)
            found[image, channel] = torch.tensor(rounded, dtype=x.dtype)
    return found


def naive_signed_of(deviations: list[float], bits: int) -> list[float]:
    return naive_signed(deviations, bits, statistics.stdev(deviations))


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "after ReLU"])
@pytest.mark.parametrize("sigma_bits", [None, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_inputs_equal_a_loop_over_images_and_channels(bits: int, sigma_bits: int | None, signed: bool) -> None:
    x = images() if signed else images().relu()
    wanted = naive(x.flatten(2), bits, sigma_bits, signed)
    example = SIGNED if signed else POSITIVE
    found = dynamic(bits, example, sigma_bits=sigma_bits)
    torch.testing.assert_close(found(x).flatten(2), wanted, rtol=1e-9, atol=1e-12)
    tokens = dynamic(bits, example, rows="last", sigma_bits=sigma_bits)
    torch.testing.assert_close(
        tokens(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(2), wanted, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("rows", ["sample", "last"])
@pytest.mark.parametrize("example", [SIGNED, POSITIVE], ids=["signed", "after ReLU"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_and_levels_of_a_channel(bits: int, example: Tensor, rows: Rows) -> None:
    x = 30 * images() ** 3
    quantizer = dynamic(bits, example, rows=rows)
    codes, values = quantizer.codes(x), quantizer(x)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 2**bits - 1
    places = values.flatten(2) if rows == "sample" else values.flatten(1, 2).transpose(1, 2)
    assert max(len(channel.unique()) for image in places for channel in image) <= 2**bits
    outlier = torch.cat([normal(1, 1, 60, 60).abs().flatten(), torch.tensor([1e3])]).view(1, 1, 1, -1)
    assert int(dynamic(bits, POSITIVE).codes(outlier).max()) == 2**bits - 1
    assert int(dynamic(bits, POSITIVE, quirk="index").codes(outlier).max()) >= 2**bits, (
        "the released code does not clip"
    )


# What must hold


@pytest.mark.parametrize("bits", [2, 4])
def test_affine_equivariance(bits: int) -> None:
    x = images()
    scales, shifts = 2 ** normal(3, 5, 1, 1, seed=8), 5 * normal(3, 5, 1, 1, seed=9)
    each = dynamic(bits, sigma_bits=None)
    torch.testing.assert_close(each(scales * x + shifts), scales * each(x) + shifts, rtol=1e-9, atol=1e-9)
    whole, images_scales = dynamic(bits), scales[:, :1]
    moved = whole(images_scales * x + shifts)
    torch.testing.assert_close(moved, images_scales * whole(x) + shifts, rtol=1e-9, atol=1e-9)
    after = dynamic(bits, POSITIVE)
    torch.testing.assert_close(after(images_scales * x.relu()), images_scales * after(x.relu()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("example", [SIGNED, POSITIVE], ids=["signed", "after ReLU"])
def test_an_image_in_a_batch_is_that_image_alone(example: Tensor) -> None:
    x = images().float() if example is SIGNED else images().float().relu()
    quantizer = dynamic(3, example)
    whole = quantizer(x)
    assert torch.equal(whole, torch.cat([quantizer(image[None]) for image in x]))
    x[0, 0, 0, 0] = -50  # the released code then takes another grid for all images
    assert torch.equal(quantizer(x)[1:], whole[1:])


def test_a_deviation_that_is_rounded_below_zero_leaves_its_channel_on() -> None:
    spreads = torch.tensor([0.01, 0.02, 1, 1, 1, 1, 1, 9], dtype=torch.float64)
    x = spreads.view(1, -1, 1, 1) * normal(1, 8, 16, 16)
    for sigma_bits, off in ((2, 7), (8, 1)):
        found, released = dynamic(sigma_bits=sigma_bits)(x), dynamic(sigma_bits=sigma_bits, quirk="index")(x)
        assert [len(channel.unique()) == 1 for channel in released[0]] == [True] * off + [False] * (8 - off)
        assert all(len(channel.unique()) > 1 for channel in found[0])
        assert float((found - x).square().mean()) < 0.5 * float((released - x).square().mean())


def test_channels_of_their_own_beat_one_range_where_they_differ() -> None:
    gains = []
    for spread in (0.0, 1.0, 2.0):
        x = (spread * normal(4, 32, 1, 1, seed=1)).exp() * normal(4, 32, 12, 12)
        errors = [float((each(x) - x).square().mean()) for each in (dynamic(), StaticQuantizer(4, "max").fit(x))]
        gains.append(errors[1] / errors[0])
    assert gains[0] > 1.5
    assert min(gains[1:]) > 2 * gains[0]


def test_gradient_passes_and_statistics_have_none() -> None:
    for example in (SIGNED, POSITIVE):
        x = images().requires_grad_()
        dynamic(2, example)(x).backward(torch.full_like(x, 3.0))
        assert torch.equal(x.grad, torch.full_like(x, 3.0))  # type: ignore[arg-type]


def test_what_does_not_vary_and_single_values() -> None:
    flat = torch.arange(6.0).view(1, 6, 1, 1).expand(2, 6, 3, 3)
    assert torch.equal(dynamic(2)(flat), flat), "means are in float"
    assert not dynamic(2, POSITIVE)(torch.zeros(2, 3, 4, 4)).any()
    single = images()[:, :, :1, :1]
    for example in (SIGNED, POSITIVE):
        found = dynamic(2, example)(single)
        assert max(len(image.unique()) for image in found) <= 4, "over channels: else each value would be its own mean"
        assert torch.equal(found.flatten(1), dynamic(2, example, rows="last")(single.flatten(1)))
    for empty in (torch.empty(0, 3, 4, 4), torch.empty(2, 3, 0, 4)):
        assert dynamic()(empty).shape == empty.shape
    broken = images()
    broken[0, 0, 0, 0] = math.nan
    for example in (SIGNED, POSITIVE):
        assert bool(dynamic(4, example, sigma_bits=None)(broken)[0, 0].isnan().all())


def test_the_sign_of_a_site_is_kept_in_its_state() -> None:
    x = images().float()
    for example in (SIGNED, POSITIVE):
        quantizer, fresh = dynamic(3, example), DynamicGaussianQuantizer(3)
        with pytest.raises(UserError, match="not fitted"):
            fresh(x)
        fresh.load_state_dict(quantizer.state_dict())
        assert torch.equal(fresh(x), quantizer(x))
        other = quantizer.at_bits(2, "keep_step")
        assert torch.equal(other(x), dynamic(2, example)(x))
        assert quantizer.at_bits(3, "keep_range") is quantizer
