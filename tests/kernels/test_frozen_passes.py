"""The native passes of a quantizer that holds weights at codes, against plain tensor operations."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from passes_common import pass_of
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import cpu, library
from harness.methods.base import Context, Step
from harness.methods.freezing import Freezing
from harness.quantization import ClippedQuantizer, FrozenQuantizer, LSQQuantizer, MaxAbsQuantizer, WeightQuantizer
from harness.quantization.frozen import _limit
from harness.quantization.layers import attach

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

BELOW: dict[str, Callable[[], WeightQuantizer]] = {
    "max": lambda: MaxAbsQuantizer(3),
    "max channel": lambda: MaxAbsQuantizer(3, True),
    "max detached": lambda: MaxAbsQuantizer(3, scale_gradient="detached"),
    "mse": lambda: ClippedQuantizer(3),
    "mse channel": lambda: ClippedQuantizer(2, True),
    "lsq": lambda: LSQQuantizer(3),
    "lsq channel": lambda: LSQQuantizer(3, True, kind="full"),
}


def some_weights() -> list[Tensor]:
    """Odd sizes, one for several blocks and threads, channels-last, and a channel of zeros."""
    draw = torch.Generator().manual_seed(4)
    shapes = [(5, 3, 3, 3), (7, 5, 1, 1), (1, 1), (301, 170)]
    weights = [torch.randn(shape, generator=draw) for shape in shapes]
    weights.append(torch.randn(6, 4, 3, 3, generator=draw).to(memory_format=torch.channels_last))
    weights[3][7] = 0.0
    return [weight.requires_grad_() for weight in weights]


def frozen(kind: str, weight: Tensor, fused: bool, inner: WeightQuantizer | None = None) -> FrozenQuantizer:
    """Two of five weights held at codes of their own, some of them outside the grid, among them a largest one."""
    inner = (inner or BELOW[kind]()).fit(weight.detach())
    own, draw = FrozenQuantizer(inner, weight.detach(), fused), torch.Generator().manual_seed(weight.numel())
    own.code.copy_(torch.randint(-6, 7, weight.shape, generator=draw))
    own.frozen.copy_((torch.rand(weight.shape, generator=draw) < 0.4) | (weight == weight.max()))
    return own


def results(own: FrozenQuantizer, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What it gives, and the gradients of the weight and of a learned step."""
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).contiguous()
    given = own(weight)
    step = getattr(own.weight_quantizer, "learned_step", None)
    ends = torch.autograd.grad(given, [weight, *([step] if step is not None else [])], upstream)
    return given.detach(), ends[0], ends[1] if step is not None else None


@pytest.mark.parametrize("kind", BELOW)
def test_forward_and_gradients(kind: str) -> None:
    for weight in some_weights():
        fast, plain = (frozen(kind, weight, fused) for fused in (True, False))
        assert pass_of(fast(weight)) in ("_Hold", "_HoldMaxAbs"), "the pass serves"
        assert "Where" in type(plain(weight).grad_fn).__name__
        (given, gradient, by_step), (expected, wanted, step_wanted) = results(fast, weight), results(plain, weight)
        assert torch.equal(given, expected), "the same operations"
        # Sums of up to 5e4 terms, in another order.
        bound = {"rtol": 1e-5, "atol": 1e-6 * weight.numel() ** 0.5}
        torch.testing.assert_close(gradient, wanted, **bound)
        rest = weight.detach().abs() < (weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True))
        assert not gradient[fast.frozen & rest].any(), "exactly 0"
        if step_wanted is not None:
            assert by_step is not None
            assert by_step.shape == step_wanted.shape
            torch.testing.assert_close(by_step, step_wanted, **bound)


@pytest.mark.parametrize("kind", BELOW)
def test_codes(kind: str) -> None:
    for weight in some_weights():
        weight = (2 * weight).detach()  # further out than what the step was fitted to
        fast, plain = (frozen(kind, 0.5 * weight, fused) for fused in (True, False))
        codes = fast.codes(weight)
        assert codes.dtype == torch.int8
        assert codes.stride() == fast.code.stride()
        assert torch.equal(codes, plain.codes(weight))
        assert torch.equal(codes, torch.where(fast.frozen, fast.code, fast.weight_quantizer.codes(weight)))


class Odd(WeightQuantizer):
    """Codes of its own, which no step gives."""

    def step(self, weight: Tensor) -> Tensor:
        return weight.abs().mean()

    def codes(self, weight: Tensor) -> Tensor:
        return weight.sign().to(torch.int8)


def test_other_quantizers_dtypes_and_layouts_are_served_by_plain_operations() -> None:
    weight = torch.randn(9, 9, requires_grad=True)
    doubles = weight.detach().double().requires_grad_()
    turned = torch.randn(7, 9).t().requires_grad_()
    for below, each in ((Odd(3), weight), (MaxAbsQuantizer(3), doubles), (MaxAbsQuantizer(3), turned)):
        fast, plain = (frozen("", each, fused, below) for fused in (True, False))
        assert torch.equal(fast.codes(each), plain.codes(each))
        (given, gradient, _), (expected, wanted, _) = results(fast, each), results(plain, each)
        assert torch.equal(given, expected)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(9,), (1, 9)], ids=str)
def test_a_step_for_each_input_is_no_step_for_each_output(shape: tuple[int, ...]) -> None:
    weight, steps = torch.randn(9, 9), torch.rand(shape) + 0.1

    class Rows(LSQQuantizer):
        def step(self, weight: Tensor) -> Tensor:
            return steps

    fast, plain = (frozen("", weight, fused, Rows(3)) for fused in (True, False))
    assert torch.equal(fast(weight), plain(weight))
    assert torch.equal(fast.codes(weight), plain.codes(weight))


@pytest.mark.parametrize("kind", ["max", "mse channel", "lsq", "lsq channel"])
def test_a_gradient_in_another_order_in_memory(kind: str) -> None:
    weight, upstream = torch.randn(30, 40, requires_grad=True), torch.randn(40, 30).t()
    gradients = [torch.autograd.grad(frozen(kind, weight, f)(weight), weight, upstream)[0] for f in (True, False)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "mse channel", "lsq"])
def test_it_can_be_differentiated_twice(kind: str) -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(2), requires_grad=True)
    second = []
    for fused in (True, False):
        own = frozen(kind, weight, fused)
        ends = [weight, *own.parameters()]
        first = torch.autograd.grad(own(weight).pow(3).sum(), ends, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), ends))  # type: ignore[arg-type]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-3)
    assert float(second[0][0].norm()) > 0


@pytest.mark.parametrize("decay", [1.0, 0.731, 0.0041])
@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.25, 1.0])
def test_the_limit_in_bits_is_the_threshold_in_frequencies(decay: float, threshold: float) -> None:
    bits = torch.arange(0x7C01, dtype=torch.int16)  # all that are not negative, infinity among them
    above = bits.view(torch.float16) * decay > threshold
    limit = _limit(decay, threshold)
    expected = torch.arange(0x7C01) >= limit
    assert torch.equal(above, expected) or (limit == 0x7C00 and not above[:-1].any())


@pytest.mark.parametrize("fused", [True, False])
def test_what_is_held_stays_where_it_is(fused: bool) -> None:
    own = FrozenQuantizer(LSQQuantizer(3), torch.zeros(2, 3), fused)
    own.freeze(torch.tensor([[True, False, False]] * 2), torch.full((2, 3), -2.0))
    frequency = torch.tensor([[0.5, 0.5, 0.1]] * 2).half()
    codes, average = torch.full((2, 3), 3, dtype=torch.int8), torch.full((2, 3), 1.0)
    own.settle(codes, average, 0.25, frequency, 0.5, 0.2)
    assert torch.equal(average, torch.full((2, 3), 1.5))
    assert own.frozen.tolist() == [[True, True, False]] * 2
    assert own.code.tolist() == [[-2, 2, 0]] * 2


def stacked(below: str, fused: bool, seed: int = 3) -> tuple[nn.Sequential, Freezing]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(1, 1), nn.Linear(301, 170))
    model.to(memory_format=torch.channels_last)
    attach(model, weight_quantizer=lambda layer: BELOW[below]().fit(layer.weight))
    config = Freezing.Config(threshold=0.04, threshold_start=0.3, start=0.2, momentum=0.05)
    method = Freezing(config, Context(target_bit=3, fused=fused))
    method.prepare(model, NO_DATA)
    return model, method


def walked(below: str, fused: bool, steps: int = 130) -> dict[str, Tensor]:
    """All state after steps of weights that go to and fro."""
    model, method = stacked(below, fused)
    draw = torch.Generator().manual_seed(7)
    for index in range(steps):
        with torch.no_grad():
            for weight in (layer.weight for layer in method._layers.values()):
                noise = torch.randn(weight.shape, generator=draw) * weight[0].numel() ** -0.5
                weight.add_(noise, alpha=0.12 if index % 2 else -0.12)
        method.after_step(Step(index, steps, model))
    assert 0.02 < method.metrics()["freezing/frozen_fraction"] < 0.98
    state: dict[str, Any] = method.state_dict()
    averages = {f"average {name}": value for name, value in state["averages"].items()}
    tracked = {f"{name} {key}": value for name, own in state["tracker"].items() for key, value in own.items()}
    return {**averages, **tracked, **dict(model.named_buffers())}


@pytest.mark.parametrize("below", ["max", "mse channel", "lsq"])
def test_the_method_to_the_last_bit(below: str) -> None:
    fast, plain = walked(below, True), walked(below, False)
    for name, expected in plain.items():
        assert torch.equal(fast[name], expected), name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(threads: None) -> None:
    weight, everything = some_weights()[3], []
    quantizers = [frozen(kind, weight, True) for kind in BELOW]  # fitted once, by sums of torch's
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made = [each for own in quantizers for each in results(own, weight)[:2]]
        for groups in (1, len(weight)):
            made += cpu.hold_backward(weight.detach(), quantizers[0].frozen, quantizers[0].code, groups)
        everything.append([*made, *(own.codes(weight) for own in quantizers), *walked("max", True, 40).values()])
    for other in everything[1:]:
        for one, same in zip(everything[0], other, strict=True):
            assert torch.equal(one, same)


def test_who_wants_plain_operations_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(library, "call", lambda name, *rest: called.append(name))
    for below in ("lsq", ""):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4))
        if below:
            attach(model, weight_quantizer=lambda layer: BELOW["lsq"]().fit(layer.weight))
            model[0].weight_quantizer.fused = False
        method = Freezing(Freezing.tiny_config(), Context(target_bit=3, fused=False))
        method.prepare(model, NO_DATA)
        model(torch.ones(2, 4)).sum().backward()
        method.after_step(Step(0, 2, model))
        method.after_step(Step(1, 2, model))
    assert not called
