"""The native passes over the weights against plain tensor operations and the plain loss."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from passes_common import left_over, pass_of
from plain_oscillation_loss import plain_gradient
from torch import Tensor, nn

from harness import LSQQuantizer, OscillationRegularizer, OscillationTracker, attach
from harness.core.config_base import QuantizerConfig
from harness.kernels import dispatch
from harness.quantization import ClippedQuantizer, MaxAbsQuantizer, WeightQuantizer, make_quantizer

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

SETTINGS = [QuantizerConfig(granularity=g, range=r) for g in ("tensor", "channel") for r in ("max", "mse")]


def network(seed: int = 0, channels_last: bool = False) -> nn.Module:
    """Small and odd sizes, and one large enough for several blocks and threads."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1), nn.Linear(1, 1, bias=False), nn.Linear(301, 170, bias=False))
    model = nn.Sequential(*layers)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [layer.weight for layer in model]  # type: ignore[misc, union-attr]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_regularizer(bits: int, settings: QuantizerConfig, scale_gradient: str, channels_last: bool) -> None:
    model = network(bits, channels_last)
    regularizer = OscillationRegularizer(model, bits, 3.0, settings, scale_gradient)  # type: ignore[arg-type]
    left = left_over(regularizer, "add_gradient")
    for weight in weights(model):
        weight.grad = torch.ones_like(weight)
    value, total = float(regularizer.add_gradient()), 0.0
    assert left == [0], "the pass serves each layer"
    for weight, (_, quantizer) in zip(weights(model), regularizer._quantizers.values(), strict=True):
        ratios = quantizer.ratio if isinstance(quantizer, ClippedQuantizer) else None
        options = {"per_channel": settings.granularity == "channel", "ratios": ratios}
        expected_value, expected = plain_gradient(
            weight.detach(), bits, 3.0, detached=scale_gradient == "detached", **options
        )
        assert weight.grad is not None
        # One is added, which rounds to 6e-8; the rest is what fp32 sums of differences of squares lose.
        off = (weight.grad.double() - 1 - expected).norm()
        assert off <= 1e-4 * expected.norm() + 2e-7 * weight.numel() ** 0.5
        total += float(expected_value)
    assert value == pytest.approx(total, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("channel", [False, True])
def test_regularizer_on_ties_and_zeros(channel: bool) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.clamp_(-0.05, 0.05)  # type: ignore[operator, union-attr]
        model[1].weight.zero_()  # type: ignore[operator, union-attr]
        model[3].weight[3].zero_()  # type: ignore[index, union-attr]
    settings = QuantizerConfig(granularity="channel" if channel else "tensor")
    OscillationRegularizer(model, 2, 3.0, settings).add_gradient()
    for weight in weights(model):
        assert weight.grad is not None
        _, expected = plain_gradient(weight.detach().double(), 2, 3.0, per_channel=channel)
        torch.testing.assert_close(weight.grad.double(), expected, rtol=1e-5, atol=1e-9)


def test_threads_change_nothing(threads: None) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        model = network()
        value = OscillationRegularizer(model, 3, 3.0).add_gradient()
        results.append([value.float(), *(weight.grad for weight in weights(model))])
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert torch.equal(one, same)  # type: ignore[arg-type]


def quantizer_of(settings: QuantizerConfig, weight: Tensor, scale_gradient: str, fused: bool) -> MaxAbsQuantizer:
    return make_quantizer(settings, 3, scale_gradient, fused).fit(weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_fake_quantization(settings: QuantizerConfig, scale_gradient: str, channels_last: bool) -> None:
    for weight in weights(network(3, channels_last)):
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        results = []
        for fused in (True, False):
            quantized = quantizer_of(settings, weight, scale_gradient, fused)(weight)
            (gradient,) = torch.autograd.grad((quantized * upstream).sum(), weight)
            results.append((quantized.detach(), gradient))
        assert torch.equal(results[0][0], results[1][0]), "the same operations"
        # Plain operations multiply by the step and divide by it again, and sum for the largest in another order.
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-4 * float(upstream.norm()) / 100)


def test_fake_quantization_of_zeros_and_of_another_layout() -> None:
    weight = torch.zeros(3, 40).index_fill_(0, torch.tensor([1]), 2.0).requires_grad_()
    for settings in SETTINGS:
        quantizer = quantizer_of(settings, weight, "graph", fused=True)
        (gradient,) = torch.autograd.grad(quantizer(weight).sum(), weight)
        (expected,) = torch.autograd.grad(quantizer.plain(weight).sum(), weight)
        torch.testing.assert_close(gradient, expected)
    weight, upstream = torch.randn(30, 40, requires_grad=True), torch.randn(40, 30).t()
    quantizer = MaxAbsQuantizer(3)
    (gradient,) = torch.autograd.grad(quantizer(weight), weight, upstream)
    (expected,) = torch.autograd.grad(quantizer.plain(weight), weight, upstream)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_fake_quantization_can_be_differentiated_twice() -> None:
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(2), requires_grad=True)
    quantizer, second = MaxAbsQuantizer(3), []
    for function in (quantizer, quantizer.plain):
        (gradient,) = torch.autograd.grad(function(weight).pow(3).sum(), weight, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(*second)
    assert float(second[0].norm()) > 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_learned_step(bits: int, per_channel: bool, channels_last: bool) -> None:
    for weight in weights(network(bits, channels_last)):
        upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        quantizer, results = LSQQuantizer(bits, per_channel).fit(weight), []
        with torch.no_grad():  # some weights shall be clipped
            quantizer.learned_step.copy_(0.5 * weight.abs().max() / quantizer.levels.high)
        for fused in (True, False):
            quantizer.fused = fused
            quantized = quantizer(weight)
            assert (pass_of(quantized) == "_LearnedStep") == fused
            both = (weight, quantizer.learned_step)
            results.append((quantized.detach(), *torch.autograd.grad((quantized * upstream).sum(), both)))
        for native_result, plain_result in zip(*[result[:1] for result in results], strict=True):
            assert torch.equal(native_result, plain_result), "the same operations"
        # Plain operations multiply by the step and divide by it again, and sum for the step in another order.
        for native_result, plain_result in zip(*[result[1:] for result in results], strict=True):
            assert native_result.shape == plain_result.shape
            torch.testing.assert_close(native_result, plain_result, rtol=1e-4, atol=1e-4)


def test_learned_step_of_another_layout_and_differentiated_twice() -> None:
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(2), requires_grad=True)
    upstream = torch.randn(40, 30, generator=torch.Generator().manual_seed(3)).t()
    quantizer, firsts, seconds = LSQQuantizer(3).fit(weight), [], []
    both = (weight, quantizer.learned_step)
    for fused in (True, False):
        quantizer.fused = fused
        firsts.append(torch.autograd.grad(quantizer(weight), both, upstream))
        first = torch.autograd.grad(quantizer(weight).pow(3).sum(), both, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.square().sum() for each in first), both))
    for one, other in (*zip(*firsts, strict=True), *zip(*seconds, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert float(other.norm()) > 0


class Odd(WeightQuantizer):
    """Codes of its own, which no step gives."""

    def step(self, weight: Tensor) -> Tensor:
        return weight.abs().mean()

    def codes(self, weight: Tensor) -> Tensor:
        return weight.sign().to(torch.int8)


def pair(kind: str, channels_last: bool = False) -> tuple[nn.Module, OscillationTracker, OscillationTracker]:
    """A network, a tracker by native passes, and one by plain operations."""
    model = network(channels_last=channels_last)
    settings = SETTINGS[int(kind)] if kind.isdigit() else None
    if kind == "lsq":
        attach(model, weight_quantizer=lambda layer: LSQQuantizer(3, kind="full").fit(layer.weight))
    if kind == "odd":
        attach(model, weight_quantizer=lambda layer: Odd(2))
    if kind == "double":
        model = model.double()
    trackers = [OscillationTracker(model, 3, settings, momentum=0.05, fused=fused) for fused in (True, False)]
    return model, trackers[0], trackers[1]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [*map(str, range(len(SETTINGS))), "lsq", "odd", "double"])
def test_tracker_to_the_last_bit(kind: str, channels_last: bool) -> None:
    model, native_tracker, plain = pair(kind, channels_last)
    left = left_over(native_tracker, "update")
    generator = torch.Generator().manual_seed(1)
    for step in range(240):  # the common factor is multiplied out twice
        with torch.no_grad():
            for weight in weights(model):
                noise = torch.randn(weight.shape, generator=generator) * weight.std(correction=0).float()
                weight.add_(noise * (0.02 if step % 3 else -0.02) * (1 + step % 5))
        native_tracker.update()
        plain.update()
    assert left == [0] * 240, "the pass serves each layer"
    for name, state in plain.state_dict().items():
        for field, expected in state.items():
            assert torch.equal(native_tracker.state_dict()[name][field], expected), (name, field)
    assert native_tracker.metrics() == plain.metrics()
    assert native_tracker.metrics()["osc/frequency"] > 0


def test_a_transposed_weight_is_served_by_plain_operations() -> None:
    model = nn.Sequential(nn.Linear(40, 30, bias=False))
    model[0].weight.data = model[0].weight.detach().t().contiguous().t()
    assert not dispatch.serves(model[0].weight)
    tracker = OscillationTracker(model, 3)
    tracker.update()
    OscillationRegularizer(model, 3, 3.0).add_gradient()
    _, expected = plain_gradient(model[0].weight.detach().double(), 3, 3.0)
    torch.testing.assert_close(model[0].weight.grad.double(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_weight_that_is_not_finite_shows_as_by_plain_operations(
    settings: QuantizerConfig, scale_gradient: str, value: float
) -> None:
    for place, source in enumerate(weights(network())):
        quantizer = make_quantizer(settings, 3, scale_gradient).fit(source)  # type: ignore[arg-type]
        made: list[tuple[Tensor, Tensor]] = []
        for fused in (True, False):
            weight = source.detach().clone()
            weight.view(-1)[weight.numel() // 2] = value
            weight.requires_grad_()
            quantizer.fused = fused
            on_grid = quantizer(weight)
            assert (pass_of(on_grid) != "") == fused
            on_grid.sum().backward()
            assert weight.grad is not None
            made.append((on_grid.detach(), weight.grad))
        for by_pass, plain in zip(*made, strict=True):
            assert plain.isnan().any(), place
            torch.testing.assert_close(by_pass, plain, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_regularizer_shows_a_weight_that_is_not_finite(settings: QuantizerConfig, value: float) -> None:
    gradients = []
    for fused in (True, False):
        model = network()
        regularizer = OscillationRegularizer(model, 3, 1.0, settings, fused=fused)
        with torch.no_grad():
            for weight in weights(model):
                weight.view(-1)[weight.numel() // 2] = value
        assert regularizer.add_gradient().isnan()
        gradients.append([weight.grad for weight in weights(model)])
    for by_pass, plain in zip(*gradients, strict=True):
        assert torch.equal(by_pass.isnan(), plain.isnan())
