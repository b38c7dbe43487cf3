"""The native pass of symreg against sorting, for weights of every kind: random, symmetric, equal, tiny."""

import shutil
from collections.abc import Callable

import pytest
import torch
from native_penalties_common import MEMORY, SHAPES, normal, value_and_gradient
from passes_common import pass_of
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import dispatch
from harness.methods.base import Context, Step
from harness.methods.symreg import Pairing, SymmetryRegularizer, asymmetry

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
    return torch.zeros(len(values)).index_add_(0, place, gradient.flatten())


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


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_more_equal_weights_than_a_counter_holds(kinds: int) -> None:
    weight = (torch.arange(300_001) % kinds - 0.8) * 0.5
    weight[7] = 0.3  # so that there is something that is not paired with its own kind
    gradient, by_sorting = agree(weight, "one")
    torch.testing.assert_close(by_value(weight, gradient), by_value(weight, by_sorting), rtol=1e-4, atol=1e-4)


def test_which_weights_set_the_scale_changes_nothing() -> None:
    """Buckets are made for about a thousand of the weights: zeros, or much smaller or larger than the others."""
    for small in (0.0, 1e-12, 1e12):
        weight = normal((4097 * 7,))
        weight[:: 4097 * 7 // 1024 + 1] *= small
        gradient, by_sorting = agree(weight, "one")
        torch.testing.assert_close(by_value(weight, gradient), by_value(weight, by_sorting), rtol=1e-6, atol=1e-8)


def test_weights_that_are_not_finite_are_left_to_plain_operations() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        weight = normal((40, 30))
        weight[3, 4] = bad
        assert pass_of(asymmetry(weight.requires_grad_(), fused=True)) != "_Passes"
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


def test_fused_off_is_the_same_penalty_by_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 7))
        method = SymmetryRegularizer(SymmetryRegularizer.Config(strength=2.0), Context(fused=fused))
        method.prepare(model, NO_DATA)
        if not fused:
            monkeypatch.setattr(dispatch, "serves", lambda *tensors, **more: pytest.fail("asked for"))
        value = method.penalty(Step(9, 10, model))
        assert isinstance(value, Tensor)
        value.backward()
        found.append((value.detach(), *(layer.weight.grad for layer in (model[0], model[1]))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
