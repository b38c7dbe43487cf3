"""The native passes of kure: against autograd through plain operations in float64, by hand, and without a spread."""

import shutil

import pytest
import torch
from native_penalties_common import MEMORY, SHAPES, by_native_passes, normal, value_and_gradient
from torch import Tensor

from harness.methods.kure import kurtosis_loss

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def plain_kurtosis_loss(weight: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """In float64 and by torch's own deviation, so that little is lost."""

    def loss(w: Tensor) -> Tensor:
        return (((w - w.mean()) / w.std()).pow(4).mean() - target).square()

    return value_and_gradient(loss, weight.double())


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("target", [1.8, 4.0])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.02, 0.3), (1e-6, 0.0), (1e6, -3e5), (1e-4, 1.0)])
def test_kurtosis_is_that_of_plain_operations(scale: float, shift: float, target: float, memory: str) -> None:
    for shape in [shape for shape in SHAPES if shape != (1, 1)]:
        weight = (normal(shape, memory) + 0.3 * normal(shape, memory, seed=1).square()) * scale + shift  # askew
        value, gradient = value_and_gradient(lambda w: kurtosis_loss(w, target, fused=True), weight)
        expected, by_autograd = plain_kurtosis_loss(weight, target)
        assert by_native_passes(kurtosis_loss(weight.requires_grad_(), target, fused=True))
        # Sums in double; z is rounded to fp32 once, and so are a few products: some 1e-7 each.
        assert float((gradient.double() - by_autograd).norm()) <= 2e-6 * float(by_autograd.norm()), shape
        assert float(value) == pytest.approx(float(expected), rel=1e-6, abs=1e-12)
        assert gradient.stride() == weight.stride()


def test_kurtosis_by_hand() -> None:
    # As in test_kure.py: K = 84 / 64. d = (-1, -1, -1, 3), mean d^3 = 6, variance 4:
    # dK/dw = (4/4 (d^3 - 6)) / 16 - 2 * 21 / 64 * 2 d / 3, by d(variance)/dw = 2 d / 3.
    weight, off = torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.tensor([[-1.0, -1.0], [-1.0, 3.0]])
    value, gradient = value_and_gradient(lambda w: kurtosis_loss(w, 1.0, fused=True), weight, 3.0)
    slope = (off**3 - 6) / 16 - 2 * 21 / 64 * 2 * off / 3
    assert float(value) == pytest.approx((84 / 64 - 1) ** 2, rel=1e-6)
    torch.testing.assert_close(gradient, 3.0 * 2 * (84 / 64 - 1) * slope)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-20, 1e4])
def test_constant_weights_have_no_kurtosis(value: float) -> None:
    for shape in ((40, 301), (7, 1), (1, 1)):
        found, gradient = value_and_gradient(lambda w: kurtosis_loss(w, 1.8, fused=True), torch.full(shape, value))
        assert float(found) == 0
        assert torch.equal(gradient, torch.zeros(shape))


def test_a_spread_that_is_rounding_counts_as_constant() -> None:
    weight = 1.0 + 1e-6 * normal((20, 30))  # less than 16 ulps
    assert float(weight.std()) > 0
    found, gradient = value_and_gradient(lambda w: kurtosis_loss(w, 1.8, fused=True), weight)
    assert float(found) == 0
    assert not gradient.any()
