"""Quantizers of activations that methods bring along: biases, a curve, learned thresholds, a clamp."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.quantization.activations import ActivationQuantizer, StaticQuantizer
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.learned_thresholds import LearnedThresholdQuantizer
from harness.quantization.shaped_activations import BiasedStepQuantizer, ClampedQuantizer, CompandingActivation

Make = Callable[[int], ActivationQuantizer]
KINDS: dict[str, Make] = {
    "biases": lambda bits: BiasedStepQuantizer(bits, (20,)),
    "curve": CompandingActivation,
    "thresholds": LearnedThresholdQuantizer,
    "clamp": ClampedQuantizer,
}


def inputs(signed: bool, seed: int = 0) -> Tensor:
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(seed))
    return x if signed else x.relu()


def moved(quantizer: ActivationQuantizer) -> ActivationQuantizer:
    """With parameters other than the initial ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator)).add_(0.01)
    return quantizer


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_values_and_states(kind: str, bits: int, signed: bool) -> None:
    x = inputs(signed)
    quantizer = moved(KINDS[kind](bits).fit(x))
    assert quantizer.signed == signed
    y, codes = quantizer(x), quantizer.codes(x)
    assert y.shape == codes.shape == x.shape
    assert 2 < len(codes.unique()) <= 2**bits
    if kind != "biases":
        for code in codes.unique():  # one value a code
            assert len(y[codes == code].unique()) == 1
    fresh = KINDS[kind](bits)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), y)
    assert fresh.signed == signed


@pytest.mark.parametrize("scale", ["keep_step", "keep_range"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_other_bits(kind: str, scale: str) -> None:
    quantizer = moved(KINDS[kind](4).fit(inputs(True)))
    other = quantizer.at_bits(3, scale)  # type: ignore[arg-type]
    assert other.bits == 3
    assert len(other.codes(inputs(True)).unique()) <= 8
    if scale == "keep_range" and kind != "biases":
        finer = quantizer.at_bits(8, "keep_range")
        x = inputs(True)
        assert (finer(x) - x).square().mean() <= (quantizer(x) - x).square().mean() * 1.01


def test_a_uniform_curve_and_uniform_thresholds_are_one_quantizer() -> None:
    x = inputs(False)
    curve, thresholds = CompandingActivation(4).fit(x), LearnedThresholdQuantizer(4).fit(x)
    assert torch.equal(curve.codes(x), thresholds.codes(x))
    torch.testing.assert_close(curve(x), thresholds(x))


def test_the_gradient_of_learned_thresholds_is_that_of_the_line() -> None:
    """Of the piecewise linear function through (T_k, k), by finite differences in double precision."""
    quantizer = moved(LearnedThresholdQuantizer(3).fit(inputs(True))).double()
    assert isinstance(quantizer, LearnedThresholdQuantizer)
    x = inputs(True, seed=2).double()[:4]

    def line(value: Tensor, gaps: Tensor) -> Tensor:
        ends = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        found = torch.zeros_like(value)
        for k in range(len(gaps)):
            found = found + ((value - ends[k]) / gaps[k]).clamp(0, 1)
        return found

    def smooth(x: Tensor, gaps: Tensor, scale_in: Tensor) -> Tensor:
        unit = quantizer.reach / len(gaps)
        return x.sign() * quantizer.scale_out.detach() * unit * line(scale_in * x.abs() / unit, gaps)

    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ends = (x.clone().requires_grad_(), quantizer.gaps, quantizer.scale_in)
    got = torch.autograd.grad((weights * quantizer(ends[0])).sum(), ends)
    plain = tuple(each.detach().clone().requires_grad_() for each in ends)
    wanted = torch.autograd.grad((weights * smooth(*plain)).sum(), plain)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_biases_shift_what_is_rounded_and_stay_where_activations_are_float() -> None:
    x = inputs(True)
    biased, plain = BiasedStepQuantizer(4, (20,)).fit(x), LearnedStepQuantizer(4).fit(x)
    assert torch.equal(biased(x), plain(x)), "they start at 0"
    with torch.no_grad():
        biased.before.fill_(0.3)
        biased.after.fill_(-0.1)
    assert torch.equal(biased(x), plain(x + 0.3) - 0.1)
    torch.testing.assert_close(biased.in_float()(x), x + 0.2)
    default = StaticQuantizer(8).fit(x)
    torch.testing.assert_close(biased.recalibrated(default)(x), default(x) + 0.2)
    assert isinstance(biased.at_bits(3, "keep_range"), BiasedStepQuantizer)


def test_the_clamp_has_its_range_whatever_it_sees() -> None:
    x = torch.tensor([0.0, 0.2, 0.5, 0.9, 3.0]).requires_grad_()
    quantizer = ClampedQuantizer(2).fit(x.detach() * 100)
    y = quantizer(x)
    torch.testing.assert_close(y, torch.tensor([0, 1, 2, 3, 3]) / 3)  # 0.5 is halfway: to even
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1, 1, 0]
    signed = ClampedQuantizer(3).fit(torch.tensor([-9.0, 9.0]))
    torch.testing.assert_close(signed(torch.tensor([-3.0, -0.5, 0.0, 0.4])), torch.tensor([-3, -2, 0, 1]) / 3)
    assert quantizer.keeps_range


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", [torch.zeros(4, 20), torch.full((4, 20), 2.0), torch.full((4, 20), -1e-30)], ids=str)
def test_constant_inputs(kind: str, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    quantizer = KINDS[kind](4).fit(x.detach())
    y = quantizer(x)
    assert y.isfinite().all()
    assert all(
        each.isfinite().all()
        for each in torch.autograd.grad(y.sum(), [x, *quantizer.parameters()], allow_unused=True)
        if each is not None
    )
