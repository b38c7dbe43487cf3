"""Gradients of the companding quantizer against autograd of its plain formula, in float64."""

import numpy as np
import pytest
import torch
from companding_common import naive_knots, shaped
from quantizers_common import normal
from torch import Tensor, nn

from harness.quantization import CompandingQuantizer


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
    quantizer.fitted = True
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
