"""DoReFa's weights: the formula of the released code with plain numbers, gradients, codes and thresholds, zeros."""

import math
from typing import Any

import pytest
import torch
from quantizers_common import BITS, backward, normal
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization import DoReFaQuantizer, DoReFaTransform, WeightQuantizer


def by_hand(weights: list[float], bits: int | None) -> list[float]:
    """The released code's weight_quantize_fn, weight by weight; bits: None for its 32."""
    mean = sum(map(abs, weights)) / len(weights)
    peak = max(abs(math.tanh(w)) for w in weights)
    if bits is None:
        return [mean * math.tanh(w) / peak for w in weights]
    top = 2**bits - 1
    return [mean * (2 * round((math.tanh(w) / 2 / peak + 0.5) * top) / top - 1) for w in weights]


def rows(weight: Tensor, per_channel: bool) -> list[Tensor]:
    return [row.flatten() for row in weight] if per_channel else [weight.flatten()]


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("shape", [(4, 30), (3, 4, 3, 3)])
@pytest.mark.parametrize("bits", [*BITS, None])
def test_it_is_the_released_codes_formula(bits: int | None, shape: tuple[int, ...], per_channel: bool) -> None:
    weight = normal(*shape).double() * torch.linspace(0.3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    actual = DoReFaTransform(per_channel)(weight)
    if bits is not None:
        actual = DoReFaQuantizer(bits, per_channel)(actual)
    assert actual.shape == shape
    for own, latent in zip(rows(actual, per_channel), rows(weight, per_channel), strict=True):
        # fp64 rounding alone: no weight of these is within 1e-12 of a tie
        assert own.tolist() == pytest.approx(by_hand(latent.tolist(), bits), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_all_levels_from_minus_e_to_e_evenly_and_none_is_zero(bits: int, per_channel: bool) -> None:
    weight = normal(2, 40_000)
    bounded = DoReFaTransform(per_channel)(weight)
    quantized = DoReFaQuantizer(bits, per_channel)(bounded)
    for part, values, latent in zip(
        rows(quantized, per_channel), rows(bounded, per_channel), rows(weight, per_channel), strict=True
    ):
        found, mean = part.unique(), latent.abs().mean()
        assert len(found) == 2**bits
        torch.testing.assert_close(found, torch.linspace(-1, 1, 2**bits) * mean)
        assert torch.equal(values.abs().max(), mean), "so the quantizer's range is E to the last bit"


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_the_transforms_gradient_is_the_closed_form_with_the_maximum_in_it_and_e_constant(per_channel: bool) -> None:
    weight, upstream = normal(3, 7).double(), normal(3, 7, seed=1).double()
    leaf = weight.clone().requires_grad_()
    (DoReFaTransform(per_channel)(leaf) * upstream).sum().backward()
    assert leaf.grad is not None
    for own, w, g in zip(*(rows(x, per_channel) for x in (leaf.grad, weight, upstream)), strict=True):
        tanh, mean = w.tanh(), w.abs().mean()
        peak, at = tanh.abs().max(), tanh.abs().argmax()
        slope = (1 - tanh.square()) * mean / peak
        expected = g * slope
        expected[at] -= slope[at] * tanh[at].sign() * (g * tanh).sum() / peak
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_rounding_is_straight_through_everywhere(bits: int, per_channel: bool) -> None:
    upstream = normal(6, 20, seed=1)
    for weight in (normal(6, 20), torch.zeros(6, 20)):
        assert torch.equal(backward(DoReFaQuantizer(bits, per_channel), weight, upstream), upstream)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_monotone_and_are_the_levels(bits: int, per_channel: bool) -> None:
    quantizer, weight = DoReFaQuantizer(bits, per_channel), normal(3, 2000)
    codes, quantized, distance = quantizer.codes(weight), quantizer(weight), quantizer.threshold_distance(weight)
    assert codes.dtype == torch.int8
    for k, q, w, d in zip(*(rows(x, per_channel) for x in (codes, quantized, weight, distance)), strict=True):
        assert -(2 ** (bits - 1)) <= int(k.min())
        assert int(k.max()) <= 2 ** (bits - 1) - 1
        assert int(k[w.abs().argmax()]) in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert bool((k[w.argsort()].int().diff() >= 0).all())
        width = 2 * float(w.abs().max()) / (2**bits - 1)
        torch.testing.assert_close(q, width * (k + 0.5))
        thresholds = torch.tensor([width * j for j in range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))])
        nearest = (w[:, None] - thresholds).abs().amin(dim=1) / width
        torch.testing.assert_close(d, nearest, atol=1e-4, rtol=0)  # fp32 at 128 spacings
        assert float(d.max()) <= 0.5 + 1e-4
        assert float((q - w).abs().max()) <= width * (0.5 + 1e-4), "each weight goes to its nearest level"


def test_a_layer_of_zeros_stays_zeros_but_gets_a_gradient() -> None:
    upstream = normal(3, 5, seed=1)
    for bits in (2, 8):
        leaf, quantizer = torch.zeros(3, 5, requires_grad=True), DoReFaQuantizer(bits)
        bounded = DoReFaTransform()(leaf)
        quantized = quantizer(bounded)
        (quantized * upstream).sum().backward()
        assert torch.equal(bounded, torch.zeros(3, 5))
        assert torch.equal(quantized, torch.zeros(3, 5))
        assert torch.equal(leaf.grad, upstream), "so that training can leave 0"  # type: ignore[arg-type]
        assert not quantizer.codes(bounded).any()
        assert bool(torch.isfinite(quantizer.threshold_distance(bounded)).all())
    leaf = torch.cat([torch.zeros(1, 5), normal(2, 5)]).requires_grad_()
    quantized = DoReFaQuantizer(3, True)(DoReFaTransform(True)(leaf))
    (quantized * upstream).sum().backward()
    assert torch.equal(quantized[0], torch.zeros(5))
    assert bool(torch.isfinite(leaf.grad).all())  # type: ignore[arg-type]
    single = DoReFaQuantizer(2)(torch.tensor([[0.0, 1.0, -1.0]]))
    torch.testing.assert_close(single, torch.tensor([[1 / 3, 1.0, -1.0]]))  # no zero level: 0 goes up


@pytest.mark.parametrize("bits", [1, 9, True, 2.5, "4"])
def test_impossible_bits_are_refused(bits: Any) -> None:
    with pytest.raises(UserError, match="2 to 8"):
        DoReFaQuantizer(bits)


def test_another_bit_width_and_no_step() -> None:
    quantizer = DoReFaQuantizer(3, True)
    other, weight = quantizer.at_bits(5, "keep_step"), normal(4, 50)
    assert isinstance(other, DoReFaQuantizer)
    assert (other.bits, other.per_channel) == (5, True)
    assert quantizer.at_bits(3, "keep_range") is quantizer
    assert torch.equal(quantizer.at(weight, 5), other(weight))
    assert DoReFaQuantizer.step is WeightQuantizer.step, "levels are no multiples of a step, so none is offered"
