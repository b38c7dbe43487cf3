"""The passes of symreg against plain operations, and counting in buckets against sorting, for weights of every kind."""

import itertools
import shutil
from collections.abc import Callable

import pytest
import torch
from native_penalties_common import MEMORY, SHAPES, normal, value_and_gradient
from passes_common import pass_of
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import dispatch
from harness.methods import symreg
from harness.methods.base import Context, Step
from harness.methods.symreg import LARGE, Pairing, SymmetryRegularizer, asymmetry

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

PAIRINGS: list[Pairing] = ["one", "two"]
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: w,
    "all positive": torch.exp,
    "all negative": lambda w: -w.exp(),
    "shifted": lambda w: 0.1 * w.abs() - 0.05,
    "heavy tails": lambda w: w**9,  # almost all in the buckets next to 0
    "nearly symmetric": lambda w: torch.cat([w.flatten(), -w.flatten() + 1e-4 * normal((w.numel(),), seed=9)]),
    "denormal": lambda w: 1e-40 * w,
}


def agree(weight: Tensor, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """The gradients by the native pass and by plain operations, after the values were compared."""

    def loss(w: Tensor) -> Tensor:
        found = asymmetry(w, pairing, fused=True)
        assert pass_of(found) == "_Passes"
        return found

    value, gradient = value_and_gradient(loss, weight, -2.5)
    expected, by_sorting = value_and_gradient(lambda w: asymmetry(w, pairing), weight, -2.5)
    torch.testing.assert_close(value, expected, rtol=2e-5, atol=1e-9)
    assert value.dtype == torch.float32
    assert gradient.stride() == weight.stride()
    return gradient, by_sorting


def by_value(weight: Tensor, gradient: Tensor) -> Tensor:
    """The sums of the gradient over equal weights: which of them has which rank is anyone's choice."""
    values, place = weight.flatten().unique(return_inverse=True)
    return torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, gradient.flatten().double())


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_sorting(kind: str, pairing: Pairing) -> None:
    shapes = [(count,) for count in (*range(1, 18), 100, 1001)] + [(301, 170)]
    for shape in shapes:
        for seed in range(8 if len(shape) == 1 else 1):
            weight = KINDS[kind](normal(shape, seed=seed))
            gradient, by_sorting = agree(weight, pairing)
            torch.testing.assert_close(by_value(weight, gradient), by_value(weight, by_sorting), rtol=1e-6, atol=1e-8)
            if len(weight.unique()) == weight.numel():
                torch.testing.assert_close(gradient, by_sorting, rtol=1e-6, atol=0)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("memory", MEMORY)
def test_shapes_and_memory_orders(memory: str, pairing: Pairing) -> None:
    for shape in SHAPES:
        torch.testing.assert_close(*agree(normal(shape, memory), pairing), rtol=1e-6, atol=0)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_equal_weights_and_zeros(pairing: Pairing) -> None:
    for seed in range(20):
        for count in (6, 9, 40, 501):
            weight = (3 * normal((count,), seed=seed)).round()  # of both signs of 0, too
            gradient, by_sorting = agree(weight, pairing)
            torch.testing.assert_close(by_value(weight, gradient), by_value(weight, by_sorting), rtol=1e-5, atol=1e-6)
    for weight in (torch.zeros(7, 9), -torch.zeros(8)):
        gradient, _ = agree(weight, pairing)
        assert not gradient.any()


def middles(weight: Tensor) -> Tensor:
    """Each weight with the size that a large layer takes it for: in fp32, to 11 binary places; 0 if much smaller."""
    bits = weight.view(torch.int32)
    number = (bits & 0x7FFFFFFF) >> 12
    middle = (number << 12 | 1 << 11).view(torch.float32).copysign(weight)
    return torch.where(number > (number.max() - 32767).clamp(min=0), middle, 0.0)


@pytest.mark.parametrize("count", [LARGE, 51_171])
@pytest.mark.parametrize("kind", [*KINDS, "equal", "zeros", "a sparse one", "one outlier"])
def test_counting_is_sorting_of_sizes_in_the_middle_of_their_buckets(kind: str, count: int) -> None:
    weight = KINDS.get(kind, lambda w: w)(normal((count,)))[:count]
    if kind == "equal":
        weight = (3 * weight).round()
    elif kind in ("zeros", "a sparse one"):
        weight = weight.abs().mul(kind != "zeros").sub(0.9).relu()
    elif kind == "one outlier":
        weight[5] = -1e6
    gradient, by_plain = agree(weight, "one")
    torch.testing.assert_close(gradient, by_plain, rtol=1e-6, atol=1e-12)
    taken = middles(weight)
    value, by_sorting = value_and_gradient(lambda w: symreg._by_sorting(w.double(), "one").float(), taken, -2.5)
    torch.testing.assert_close(asymmetry(weight, fused=True), value, rtol=1e-6, atol=1e-44)
    torch.testing.assert_close(by_value(taken, gradient), by_value(taken, by_sorting), rtol=2e-4, atol=2e-6)
    exact = float(symreg._by_sorting(weight.double(), "one"))
    size, in_first = weight.abs(), float((taken == 0).double().mean())
    bound = 2.0**-11 * float(size.mean()) + 2.0**-15 * float(size.max()) * in_first
    assert abs(float(value) - exact) <= 1.001 * bound + 2e-6 * exact + 1e-42


def test_training_by_counting_becomes_as_symmetric_as_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    def final(large: int) -> float:
        monkeypatch.setattr(symreg, "LARGE", large)
        weight = (0.05 * normal((LARGE,)) + 0.02).requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 100)
        for _ in range(100):
            optimizer.zero_grad()
            asymmetry(weight, fused=True).backward()
            optimizer.step()
            schedule.step()
        return float(symreg._by_sorting(weight.detach(), "one"))

    by_counting, by_sorting = final(LARGE), final(LARGE + 1)
    assert by_counting < 1.1 * by_sorting < 1e-3


def test_weights_that_are_not_finite_are_not_hidden() -> None:
    for bad, count in itertools.product((torch.nan, torch.inf, -torch.inf), (1200, LARGE)):
        weight = normal((count,))
        weight[3] = bad
        for fused in (True, False):
            assert not asymmetry(weight, fused=fused).isfinite()
        assert pass_of(asymmetry(weight.requires_grad_(), "two", fused=True)) != "_Passes"


def test_what_passes_do_not_serve_goes_by_plain_operations() -> None:
    for other in (normal((40, 30)).t(), normal((40, 30)).double(), normal((40, 30))[:, ::2]):
        assert pass_of(asymmetry(other.requires_grad_(), fused=True)) != "_Passes"


def test_threads_change_nothing() -> None:
    before, results = torch.get_num_threads(), []
    weight = normal((301, 170))
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(value_and_gradient(lambda w: asymmetry(w, "two", fused=True), weight))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


def trained(method: SymmetryRegularizer, model: nn.Module) -> list[Tensor]:
    """The penalty and the gradients that a step gives two layers, to which the loss gives some, too."""
    now = Step(9, 10, model)
    loss, value = model(normal((3, 40))).square().sum(), method.penalty(now)
    (loss + value).backward()
    value = value + method.after_backward(now)
    assert isinstance(value, Tensor)
    return [value.detach(), *(layer.weight.grad for layer in model)]


def of_a_step(pairing: Pairing, fused: bool) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 301), nn.Linear(301, 7))
    method = SymmetryRegularizer(SymmetryRegularizer.Config(strength=0.3, pairing=pairing), Context(fused=fused))
    method.prepare(model, NO_DATA)
    return trained(method, model)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_fused_off_is_the_same_penalty_by_plain_operations(pairing: Pairing, monkeypatch: pytest.MonkeyPatch) -> None:
    by_passes = of_a_step(pairing, fused=True)
    monkeypatch.setattr(dispatch, "serves", lambda *tensors, **more: pytest.fail("asked for"))
    for one, other in zip(by_passes, of_a_step(pairing, fused=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_gradient_added_in_place_is_that_of_autograd_to_the_last_bit(
    pairing: Pairing, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place = of_a_step(pairing, fused=True)
    monkeypatch.setattr(SymmetryRegularizer, "_passes_are_in_place", lambda self: False)
    for one, other in zip(in_place, of_a_step(pairing, fused=True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("count", [1200, LARGE + 7])
def test_gradients_that_lie_otherwise_in_memory_or_are_not_there(count: int, pairing: Pairing) -> None:
    shape = (count // 6, 6, 1, 1) if count % 6 == 0 else (count,)
    for before in (None, normal(shape, seed=1), normal((*shape, 2), seed=1)[..., 0]):
        weight = normal(shape).requires_grad_()
        (0.3 * asymmetry(weight, pairing, fused=True)).backward()
        assert weight.grad is not None
        expected = weight.grad if before is None else before + weight.grad
        weight.grad = before
        value = symreg.add_gradient([weight], pairing, 0.3)
        assert weight.grad is not None
        assert torch.equal(weight.grad, expected)
        torch.testing.assert_close(value, 0.3 * asymmetry(weight.detach(), pairing), rtol=2e-5, atol=1e-9)


def test_a_weight_that_is_not_finite_has_the_plain_gradient() -> None:
    weight = normal((1200,)).index_fill_(0, torch.tensor(3), torch.inf).requires_grad_()
    (0.3 * asymmetry(weight, "two")).backward()
    assert weight.grad is not None
    expected, weight.grad = weight.grad, None
    assert symreg.add_gradient([weight], "two", 0.3).isinf()
    assert torch.equal(weight.grad, expected)
