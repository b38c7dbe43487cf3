"""The native passes of companding against autograd through plain operations: values to the last bit."""

import shutil

import pytest
import torch
from companding_common import shaped
from native_penalties_common import MEMORY, SHAPES, normal
from passes_common import pass_of
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import dispatch
from harness.methods.base import Context
from harness.methods.lcq import LearnedCompanding
from harness.quantization import CompandingQuantizer

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


def by_native_passes(quantizer: CompandingQuantizer, weight: Tensor) -> bool:
    return pass_of(quantizer(weight)) == "Companded"


def both_ways(quantizer: CompandingQuantizer, weight: Tensor) -> list[tuple[Tensor, ...]]:
    """The value and the gradients of the weight, the range and the curve, by native passes and by plain operations."""
    upstream, found = normal(tuple(weight.shape), seed=5), []
    for fused in (True, False):
        quantizer.fused = fused
        leaf = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        value = quantizer(leaf)
        assert (pass_of(value) == "Companded") == fused
        assert quantizer.log_slopes is not None
        ends = leaf, quantizer.learned_range, quantizer.log_slopes
        found.append((value.detach(), *torch.autograd.grad((value * upstream).sum(), ends)))
    return found


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_it_is_that_of_plain_operations(bits: int, channel: bool, normalize: bool, memory: str) -> None:
    for number, shape in enumerate(SHAPES):
        weight = 0.3 * normal(shape, memory)
        intervals = (16, 5, 64)[number % 3]
        settings = {"per_channel": channel, "normalize": normalize, "start": 1.6, "intervals": intervals}
        native, plain = both_ways(shaped(bits, weight, seed=bits, **settings), weight)
        assert torch.equal(native[0], plain[0])
        assert native[1].stride() == weight.stride()
        torch.testing.assert_close(native[1], plain[1], rtol=1e-5, atol=1e-6)
        for one, other in zip(native[2:], plain[2:], strict=True):  # sums in fp64 against sums in fp32
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(1 + other.abs().max()))


@pytest.mark.parametrize("channel", [False, True])
def test_zeros_bounds_and_what_is_no_number(channel: bool) -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -1.0], [1 + 1e-6, 1.01, -2.0, 1 / 6], [1e-30, -0.5, 0.5, 1e30]])
    quantizer = CompandingQuantizer(3, channel, normalize=False).fit(weight)
    quantizer.learned_range = nn.Parameter(torch.ones(3, 1) if channel else torch.tensor(1.0))
    native, plain = both_ways(quantizer, weight)
    assert torch.equal(native[0], plain[0])
    torch.testing.assert_close(native[1], plain[1], rtol=1e-6, atol=0)
    weight[1, 2], weight[2, 0] = torch.nan, torch.inf
    native, plain = both_ways(quantizer, weight)
    assert torch.equal(native[0].isnan(), plain[0].isnan())
    assert torch.equal(native[0].nan_to_num(), plain[0].nan_to_num())


def test_threads_change_nothing() -> None:
    before, results = torch.get_num_threads(), []
    weight = normal((301, 170))
    quantizer = shaped(3, weight, normalize=False)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(both_ways(quantizer, weight)[0])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


def test_what_the_passes_do_not_serve_is_served_by_plain_operations() -> None:
    weight = normal((40, 30))
    assert by_native_passes(shaped(3, weight), weight.requires_grad_())
    for other in (normal((40, 30)).t(), normal((40, 30)).double(), normal((40, 30))[:, ::2]):
        assert not by_native_passes(shaped(3, other), other.requires_grad_())
    assert not by_native_passes(shaped(3, weight.detach(), intervals=65), weight)


def test_it_can_be_differentiated_twice() -> None:
    second = []
    for fused in (True, False):
        weight = normal((6, 50)).requires_grad_()
        quantizer = shaped(3, weight.detach())
        quantizer.fused = fused
        (gradient,) = torch.autograd.grad(quantizer(weight).pow(3).sum(), weight, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-4)
    assert float(second[0].norm()) > 0


@pytest.mark.parametrize("fused", [True, False])
def test_the_switch_of_the_run_reaches_the_quantizers(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(30, 20))
    method = LearnedCompanding(LearnedCompanding.Config(), Context(target_bit=3, fused=fused))
    method.prepare(model, NO_DATA)
    asked: list[Tensor] = []
    known = dispatch.serves
    monkeypatch.setattr(dispatch, "serves", lambda *given, **more: asked.append(given[0]) or known(*given, **more))
    model(torch.zeros(2, 30))
    assert bool(asked) == fused
