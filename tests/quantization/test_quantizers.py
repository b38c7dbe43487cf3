"""Quantizers against a naive numpy version, torch's own, hand formulas, and what must hold for any weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import naive_quantization as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from harness.errors import UserError
from harness.knobs import QuantizerKnobs
from harness.quantization import (
    ClippedQuantizer,
    LSQQuantizer,
    MaxAbsQuantizer,
    WeightQuantizer,
    clip_ratio,
    levels,
    make_quantizer,
    round_ste,
)
from harness.quantization.rounding import clip, scale_gradient

BITS = range(2, 9)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
#: Ordinary sizes of weights; zeros included.
VALUES = st.floats(-8, 8, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=VALUES)
QUANTIZERS: list[Callable[[int], WeightQuantizer]] = [
    MaxAbsQuantizer,
    ClippedQuantizer,
    LSQQuantizer,
    lambda bits: MaxAbsQuantizer(bits, per_channel=True),
    lambda bits: ClippedQuantizer(bits, per_channel=True),
    lambda bits: LSQQuantizer(bits, per_channel=True),
    lambda bits: LSQQuantizer(bits, kind="full"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def groups(quantizer: WeightQuantizer, weight: Tensor) -> list[Tensor]:
    """The parts of a tensor that share a step."""
    return list(weight) if quantizer.per_channel else [weight]


# The grid


@pytest.mark.parametrize("bits", BITS)
def test_levels(bits: int) -> None:
    assert levels(bits) == (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    assert levels(bits, "full") == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert levels(bits, "unsigned") == (0, 2**bits - 1)


@pytest.mark.parametrize("bits", [1, 0, -3, 9, 40, True, False, 2.5, 4.0, "4", None])
@pytest.mark.parametrize("build", [levels, *QUANTIZERS[:3], lambda bits: make_quantizer(QuantizerKnobs(), bits)])
def test_impossible_bits_are_refused(build: Callable[[Any], object], bits: Any) -> None:
    with pytest.raises(UserError, match=r"2 to 8"):
        build(bits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", BITS)
def test_max_abs_is_the_naive_version_bit_for_bit(bits: int, device: str) -> None:
    for seed, shape in enumerate([(40, 60), (7, 5, 3, 3), (1, 1)]):
        weight = normal(*shape, seed=seed)
        for per_channel, reference in ((False, naive.max_abs), (True, naive.max_abs_per_channel)):
            ours = MaxAbsQuantizer(bits, per_channel)(weight.to(device)).cpu().numpy()
            if device == "cpu":
                np.testing.assert_array_equal(ours, reference(weight.numpy(), bits), strict=True)
            else:  # CUDA divides by a plain number through its reciprocal, which moves the step by an ulp
                np.testing.assert_allclose(ours, reference(weight.numpy(), bits), rtol=2e-7)


@given(WEIGHTS, st.sampled_from(BITS))
@settings(max_examples=60, deadline=None)
def test_any_weights_equal_the_naive_version(weight: np.ndarray, bits: int) -> None:
    ours = MaxAbsQuantizer(bits)(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(ours, naive.max_abs(weight, bits), strict=True)


def test_two_bits_are_ternary() -> None:
    weight = normal(30, 30)
    quantized = MaxAbsQuantizer(2)(weight)
    peak = float(weight.abs().max())
    assert sorted(quantized.unique().tolist()) == [-peak, 0.0, peak]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("build", QUANTIZERS)
def test_a_grid_of_b_bits(build: Callable[[int], WeightQuantizer], bits: int) -> None:
    weight = normal(8, 4000) * torch.linspace(0.5, 3, 8)[:, None]
    quantizer = build(bits).fit(weight)
    low, high = quantizer.levels
    full = quantizer.kind == "full"
    assert high - low + 1 == (2**bits if full else 2**bits - 1)
    quantized, codes = quantizer(weight), quantizer.codes(weight)
    assert codes.dtype == torch.int8
    for values, ints in zip(groups(quantizer, quantized), groups(quantizer, codes), strict=True):
        assert len(values.unique()) <= high - low + 1
        assert int(ints.min()) >= low
        assert int(ints.max()) <= high
    assert torch.equal(quantizer.step(weight) * codes, quantized.detach()), "q = s k, the codes being those watched"


@given(WEIGHTS, st.sampled_from(BITS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_max_abs_holds_for_any_weights(array: np.ndarray, bits: int, per_channel: bool) -> None:
    weight, quantizer = torch.from_numpy(array), MaxAbsQuantizer(bits, per_channel)
    quantized, step = quantizer(weight), quantizer.step(weight)
    # q's largest value is s Q, which may be an ulp off max|w|; the codes are the same all the same
    assert torch.equal(quantizer.codes(quantized), quantizer.codes(weight))
    torch.testing.assert_close(quantizer(quantized), quantized, rtol=3e-7, atol=0)  # two roundings of fp32
    # half a step, and the rounding of fp32 at the size of w
    assert bool(((weight - quantized).abs() <= step / 2 + 2e-7 * weight.abs()).all())
    assert torch.equal(quantizer(-weight), -quantized)
    for part, on_grid in zip(groups(quantizer, weight), groups(quantizer, quantized), strict=True):
        order = part.flatten().argsort()
        assert bool((on_grid.flatten()[order].diff() >= 0).all()), "monotone"
        assert torch.equal(MaxAbsQuantizer(bits)(part), on_grid), "per channel is a loop over channels"


@given(WEIGHTS, st.sampled_from(BITS), st.sampled_from([0.25, 2.0, 1024.0]))
@settings(max_examples=40, deadline=None)
def test_scale_equivariance(array: np.ndarray, bits: int, factor: float) -> None:
    weight = torch.from_numpy(array)  # powers of two, so that scaling is exact
    for quantizer in (MaxAbsQuantizer(bits), MaxAbsQuantizer(bits, per_channel=True)):
        assert torch.equal(quantizer(weight * factor), quantizer(weight) * factor)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["symmetric", "full"])
def test_torchs_own_fake_quantization(bits: int, kind: Any) -> None:
    weight = normal(200, 100, seed=bits)
    quantizer = LSQQuantizer(bits, kind=kind).fit(weight)
    step, (low, high) = quantizer.learned_step.item(), quantizer.levels
    theirs = torch.fake_quantize_per_tensor_affine(weight, step, 0, low, high)
    scaled = weight.double() / step
    tie = (scaled - scaled.floor() - 0.5).abs() < 1e-5  # torch multiplies by 1 / step, which moves these
    assert float(tie.float().mean()) < 0.01
    assert torch.equal(quantizer(weight)[~tie], theirs[~tie])


@pytest.mark.parametrize("build", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_give_zeros_and_no_nan(build: Callable[[int], WeightQuantizer], bits: int) -> None:
    for weight in (torch.zeros(3, 5), torch.cat([torch.zeros(1, 5), normal(2, 5)])):
        quantizer = build(bits).fit(weight)
        leaf = weight.clone().requires_grad_()
        quantized = quantizer(leaf)
        (quantized * normal(3, 5, seed=1)).sum().backward()
        assert torch.equal(quantized[0], torch.zeros(5))
        assert leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all())
        for parameter in quantizer.parameters():
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())
        if not weight.any() and not isinstance(quantizer, LSQQuantizer):
            assert not leaf.grad.any(), "a tensor of zeros has gradient 0"
        assert not quantizer.codes(weight)[0].any()


# Gradients


def backward(quantizer: WeightQuantizer, weight: Tensor, upstream: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    (quantizer(leaf) * upstream).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", ["graph", "detached"])
def test_straight_through_gradient(bits: int, scale: Any) -> None:
    for weight in (normal(6, 20).double(), normal(6, 20).double().clamp(-1.5, 1.5)):  # the second: tied maxima
        upstream = normal(6, 20, seed=1).double()
        expected = naive.straight_through_gradient(weight.numpy(), upstream.numpy(), bits, scale == "graph")
        actual = backward(MaxAbsQuantizer(bits, scale_gradient=scale), weight, upstream)
        # sums in another order
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)
        largest = weight.abs() == weight.abs().max()
        moved = (actual - upstream).abs() > 1e-6
        assert torch.equal(moved, largest & (scale == "graph")), "the largest weights, and they alone, move the step"
        actual = backward(MaxAbsQuantizer(bits, True, scale), weight, upstream)
        rows = zip(weight.numpy(), upstream.numpy(), strict=True)
        expected = np.stack([naive.straight_through_gradient(w, g, bits, scale == "graph") for w, g in rows])
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_largest_weight_keeps_its_gradient_in_fp32() -> None:
    """w / s may come to an ulp above Q there; a clamp would then give it gradient 0."""
    for seed in range(200):
        weight = normal(1, 5, seed=seed)
        for bits in (3, 6, 8):
            gradient = backward(MaxAbsQuantizer(bits, scale_gradient="detached"), weight, torch.ones(1, 5))
            torch.testing.assert_close(gradient, torch.ones(1, 5), rtol=2e-7, atol=0)  # s / s rounds twice


def test_a_clipped_quantizer_at_ratio_one_clips_nothing() -> None:
    """w / s comes to an ulp above Q in one tensor of ten."""
    for seed in range(200):
        weight = normal(1, 5, seed=seed)
        for bits in (4, 6, 8):
            gradient = backward(ClippedQuantizer(bits, scale_gradient="detached"), weight, torch.ones(1, 5))
            torch.testing.assert_close(gradient, torch.ones(1, 5), rtol=2e-7, atol=0)  # s / s rounds twice


@pytest.mark.parametrize("bits", BITS)
def test_clipped_gradient(bits: int) -> None:
    weight, upstream = normal(5, 40).double(), normal(5, 40, seed=1).double()
    quantizer = ClippedQuantizer(bits, scale_gradient="detached").fit(weight)
    quantizer.ratio = torch.tensor(0.5, dtype=torch.float64)
    inside = weight.abs() <= 0.5 * weight.abs().max()
    assert bool((~inside).any())
    actual = backward(quantizer, weight, upstream)
    torch.testing.assert_close(actual, upstream * inside, rtol=1e-15, atol=0)  # times s, over s
    quantizer.scale_gradient = "graph"
    step = 0.5 * weight.abs().max() / quantizer.levels.high
    codes = (weight / step).round().clamp(*quantizer.levels)
    slope = torch.where(inside, codes - weight / step, codes)  # dq/ds
    largest = weight.abs() == weight.abs().max()
    expected = upstream * inside + largest * weight.sign() * (upstream * slope).sum() * 0.5 / quantizer.levels.high
    torch.testing.assert_close(backward(quantizer, weight, upstream), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["symmetric", "full"])
def test_lsq_gradients_are_the_papers(bits: int, kind: Any) -> None:
    weight, upstream = normal(6, 30).double(), normal(6, 30, seed=1).double()
    weight[0, 0], weight[0, 1] = 30.0, -30.0  # outside for certain
    quantizer = LSQQuantizer(bits, kind=kind).fit(weight)
    gradient = backward(quantizer, weight, upstream)
    step = quantizer.learned_step.item()
    of_weight, of_step = naive.lsq_gradients(weight.numpy(), step, upstream.numpy(), *quantizer.levels)
    np.testing.assert_allclose(gradient.numpy(), of_weight, rtol=1e-15)  # times s, over s
    assert gradient[0, 0] == gradient[0, 1] == 0
    assert quantizer.learned_step.grad is not None
    assert float(quantizer.learned_step.grad) == pytest.approx(of_step, rel=1e-11)  # sums in another order


def test_lsq_per_channel_has_a_step_and_a_factor_of_its_own() -> None:
    weight, upstream = normal(4, 3, 3, 3).double(), normal(4, 3, 3, 3, seed=1).double()
    quantizer = LSQQuantizer(3, per_channel=True).fit(weight)
    assert quantizer.learned_step.shape == (4, 1, 1, 1)
    gradient = backward(quantizer, weight, upstream)
    assert quantizer.learned_step.grad is not None
    for channel in range(4):
        step = quantizer.learned_step[channel].item()
        of_weight, of_step = naive.lsq_gradients(weight[channel].numpy(), step, upstream[channel].numpy(), -3, 3)
        np.testing.assert_allclose(gradient[channel].numpy(), of_weight, rtol=1e-15)
        assert float(quantizer.learned_step.grad[channel]) == pytest.approx(of_step, rel=1e-11)


def test_lsq_start_and_floor_of_the_step() -> None:
    weight = normal(6, 30)
    assert LSQQuantizer(4).fit(weight).learned_step.item() == pytest.approx(
        2 * float(np.abs(weight.numpy()).mean()) / math.sqrt(7), rel=1e-6
    )
    assert LSQQuantizer(4).fit(torch.zeros(3, 3)).learned_step.item() == pytest.approx(1e-5)
    quantizer = LSQQuantizer(4, per_channel=True).fit(weight)
    with torch.no_grad():
        quantizer.learned_step[2] = -1.0
    kept = quantizer.learned_step.detach().clone()
    quantizer.project()
    assert quantizer.learned_step[2].item() == pytest.approx(1e-5)
    kept[2] = quantizer.learned_step[2].detach()
    assert torch.equal(quantizer.learned_step, kept)


def test_straight_through_pieces_are_exact() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 2.49999, 1e7 + 1, -3.2], requires_grad=True)
    rounded = round_ste(x)
    assert rounded.tolist() == [0.0, 2.0, -0.0, 2.0, 1e7 + 1, -3.0]
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones(6))  # type: ignore[arg-type]
    bounds = torch.tensor([-3.0, -2.0, 0.0, 1.0, 1.5], requires_grad=True)
    clip(bounds, -2, 1).sum().backward()
    assert bounds.grad is not None
    assert bounds.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0], "the bounds are inside"
    y = torch.tensor([0.1], requires_grad=True)
    assert torch.equal(scale_gradient(y, 0.25), y)
    scale_gradient(y, 0.25).sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [0.25]


# Ranges and other bit-widths


@pytest.mark.parametrize("bits", BITS)
def test_clipping_is_never_worse_than_the_whole_range(bits: int) -> None:
    for seed in range(5):
        weight = normal(20, 50, seed=seed)
        ratio = float(clip_ratio(weight, levels(bits), per_channel=False))
        errors = {r: naive.squared_error(weight.numpy(), r, bits) for r in (ratio, 1.0, 0.9, 0.7, 0.5, 0.3)}
        # the search is over 80 ratios, so one between two of them may be a little better: 2 % seen
        assert errors[ratio] <= min(errors.values()) * 1.02
        assert errors[ratio] <= errors[1.0]
        assert 0.2 <= ratio <= 1


def test_clip_ratio_per_channel_is_a_loop() -> None:
    weight = normal(6, 50) ** 3
    weight[2] = 0
    together = clip_ratio(weight, levels(3), per_channel=True)
    alone = [float(clip_ratio(channel, levels(3), per_channel=False)) for channel in weight]
    assert together.shape == (6, 1)
    assert together.flatten().tolist() == alone
    assert alone[2] == 1


@pytest.mark.parametrize("per_channel", [False, True])
def test_another_bit_width_keeps_the_step_or_the_range(per_channel: bool) -> None:
    weight = normal(5, 40)
    quantizer = LSQQuantizer(3, per_channel).fit(weight)
    with torch.no_grad():
        quantizer.learned_step.mul_(1.7)
    assert quantizer.at_bits(3, "keep_range") is quantizer
    for bits in (2, 4, 8):
        same_step, same_range = quantizer.at_bits(bits, "keep_step"), quantizer.at_bits(bits, "keep_range")
        assert isinstance(same_step, LSQQuantizer)
        assert same_step.bits == same_range.bits == bits
        assert torch.equal(same_step.learned_step, quantizer.learned_step)
        high = 2 ** (bits - 1) - 1
        ends = same_range.step(weight) * same_range.levels.high
        torch.testing.assert_close(ends, quantizer.step(weight) * 3, rtol=2e-7, atol=0)  # one more rounding
        assert same_range.levels.high == same_step.levels.high == high


def test_another_bit_width_keeps_the_kind_of_levels() -> None:
    assert LSQQuantizer(3, kind="full").fit(normal(3, 3)).at_bits(5, "keep_step").levels == (-16, 15)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_clipped_range_or_its_step_is_kept_too(per_channel: bool) -> None:
    weight = normal(5, 400)
    quantizer = ClippedQuantizer(3, per_channel).fit(weight)
    assert float(quantizer.ratio.max()) < 1
    for bits in (2, 4, 8):
        same_step, same_range = quantizer.at_bits(bits, "keep_step"), quantizer.at_bits(bits, "keep_range")
        assert same_step.levels == same_range.levels == levels(bits)
        # a few more roundings of fp32
        torch.testing.assert_close(same_step.step(weight), quantizer.step(weight), rtol=4e-7, atol=0)
        ends = same_range.step(weight) * same_range.levels.high
        torch.testing.assert_close(ends, quantizer.step(weight) * 3, rtol=4e-7, atol=0)


def test_max_abs_has_learned_nothing() -> None:
    weight = normal(5, 40)
    for scale in ("keep_step", "keep_range"):
        other = MaxAbsQuantizer(3, True).at_bits(5, scale)  # type: ignore[arg-type]
        assert torch.equal(other(weight), MaxAbsQuantizer(5, True)(weight))


@pytest.mark.parametrize(
    ("knobs", "kind", "per_channel"),
    [
        (QuantizerKnobs(), MaxAbsQuantizer, False),
        (QuantizerKnobs(granularity="channel"), MaxAbsQuantizer, True),
        (QuantizerKnobs(range="mse"), ClippedQuantizer, False),
        (QuantizerKnobs(range="mse", granularity="channel"), ClippedQuantizer, True),
    ],
)
def test_the_default_quantizer_of_a_run(knobs: QuantizerKnobs, kind: type, per_channel: bool) -> None:
    quantizer = make_quantizer(knobs, 5, "detached")
    assert type(quantizer) is kind
    assert (quantizer.bits, quantizer.per_channel, quantizer.scale_gradient) == (5, per_channel, "detached")


@pytest.mark.parametrize("build", QUANTIZERS)
def test_copies_are_equal_and_apart(build: Callable[[int], WeightQuantizer]) -> None:
    weight = normal(4, 6)
    quantizer = build(3).fit(weight)
    copied = copy.deepcopy(quantizer)
    assert torch.equal(copied(weight), quantizer(weight))
    loaded = build(3).fit(torch.ones_like(weight))
    loaded.load_state_dict(quantizer.state_dict())
    assert torch.equal(loaded(weight), quantizer(weight))
