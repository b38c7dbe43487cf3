"""Quantizers against a naive numpy version, torch's own, hand formulas, and what must hold for any weights."""

from collections.abc import Callable
from typing import Any

import naive_quantization as naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantizers_common import BITS, QUANTIZERS, backward, normal
from torch import Tensor

from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.quantization import (
    LSQQuantizer,
    MaxAbsQuantizer,
    WeightQuantizer,
    levels,
    make_quantizer,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


#: Ordinary sizes of weights; zeros included.
VALUES = st.floats(-8, 8, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)


WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=VALUES)


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
@pytest.mark.parametrize("build", [levels, *QUANTIZERS[:3], lambda bits: make_quantizer(QuantizerConfig(), bits)])
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
        if not weight.any() and not list(quantizer.parameters()):  # a learned step is there without weights
            assert not leaf.grad.any(), "a tensor of zeros has gradient 0"
        assert not quantizer.codes(weight)[0].any()


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
