"""The native passes of dampening and kure against autograd through plain operations, and where they serve."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native_penalties_common import MEMORY, SHAPES, by_native_passes, normal, value_and_gradient
from quantizers_common import lsq_at
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import dispatch
from harness.methods.base import Context, Method, Step
from harness.methods.dampening import Dampening, distance
from harness.methods.kure import Kurtosis, kurtosis_loss
from harness.quantization import (
    ClippedQuantizer,
    CompandingQuantizer,
    DecoupledQuantizer,
    DoReFaQuantizer,
    FrozenQuantizer,
    LSQQuantizer,
    MaxAbsQuantizer,
    StatisticalQuantizer,
    WeightQuantizer,
)
from harness.quantization.layers import attach
from harness.quantization.learned_step import on_plain_grid
from harness.records.schema import TRAIN_PENALTY
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

FITTED: dict[str, Callable[[int, bool], WeightQuantizer]] = {
    "lsq": lambda bits, channel: LSQQuantizer(bits, channel),
    "lsq full": lambda bits, channel: LSQQuantizer(bits, channel, "full"),
    "max-abs": lambda bits, channel: MaxAbsQuantizer(bits, channel),
    "clipped": lambda bits, channel: ClippedQuantizer(bits, channel),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dampening_is_that_of_plain_operations(bits: int, kind: str, channel: bool, memory: str) -> None:
    for shape in SHAPES:
        weight = normal(shape, memory)
        quantizer = FITTED[kind](bits, channel).fit(weight)
        for aggregation in ("kernel_mean", "mean", "sum"):

            def loss(w: Tensor, fused: bool, agg: Any = aggregation, q: WeightQuantizer = quantizer) -> Tensor:
                found = distance(w, q, agg, fused)
                assert by_native_passes(found) == fused
                return found

            value, gradient = value_and_gradient(lambda w, f=loss: f(w, True), weight, -2.5)  # type: ignore[misc]
            expected, by_autograd = value_and_gradient(lambda w, f=loss: f(w, False), weight, -2.5)  # type: ignore[misc]
            # The differences are equal to the last bit; what they are multiplied by is rounded in another order.
            torch.testing.assert_close(gradient, by_autograd, rtol=1e-6, atol=0)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-12)
            assert gradient.stride() == weight.stride()
            assert value.dtype == torch.float32


def test_dampening_by_hand() -> None:
    weight = torch.tensor([[0.3, -0.2, 0.9], [1.25, 0.05, -5.0]])
    quantizer = lsq_at(0.5, 2, kind="full")  # codes -2 to 1: the range is [-1, 0.5]
    off = torch.tensor([[0.2, 0.2, 0.0], [0.0, -0.05, 0.0]])
    value, gradient = value_and_gradient(lambda w: distance(w, quantizer, "sum", fused=True), weight)
    torch.testing.assert_close(value, off.square().sum())
    torch.testing.assert_close(gradient, -2 * off)
    assert quantizer.learned_step.grad is None


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("kind", FITTED)
def test_dampening_of_zeros_and_of_what_is_no_number(kind: str, channel: bool) -> None:
    weight = torch.zeros(4, 33)
    quantizer = FITTED[kind](3, channel).fit(weight)
    value, gradient = value_and_gradient(lambda w: distance(w, quantizer, "sum", fused=True), weight)
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros_like(weight))
    weight[2] = 1.0 + torch.arange(33.0)  # one channel that is not zeros
    quantizer.fit(weight)
    value, gradient = value_and_gradient(lambda w: distance(w, quantizer, "sum", fused=True), weight)
    assert float(value) > 0
    assert bool(gradient[2].any())
    assert not gradient[[0, 1, 3]].any()
    weight[2, 7] = torch.nan
    assert value_and_gradient(lambda w: distance(w, quantizer, "sum", fused=True), weight)[0].isnan()


class Doubled(LSQQuantizer):
    """A grid that the step alone does not tell."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * super().forward(weight)


class Plainer(MaxAbsQuantizer):
    def plain(self, weight: Tensor) -> Tensor:
        return weight


def test_which_quantizers_are_steps_and_nothing_else() -> None:
    weight = normal((8, 9))
    for make in FITTED.values():
        assert on_plain_grid(make(3, False))
    frozen = FrozenQuantizer(LSQQuantizer(3).fit(weight), weight)
    frozen.freeze(torch.ones_like(weight, dtype=torch.bool), torch.full_like(weight, 2.0))
    own = (CompandingQuantizer, DecoupledQuantizer, DoReFaQuantizer, StatisticalQuantizer, Doubled, Plainer)
    for quantizer in (frozen, *(kind(3) for kind in own)):
        assert not on_plain_grid(quantizer), type(quantizer).__name__
    for quantizer in (frozen, Doubled(3).fit(weight)):
        value, gradient = value_and_gradient(lambda w, q=quantizer: distance(w, q, "sum", fused=True), weight)  # type: ignore[misc]
        expected = value_and_gradient(lambda w, q=quantizer: distance(w, q, "sum"), weight)  # type: ignore[misc]
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])


def test_threads_change_nothing(threads: None) -> None:
    results = []
    weight = normal((301, 170))
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = value_and_gradient(lambda w: kurtosis_loss(w, 1.8, fused=True), weight)
        for channel in (False, True):
            quantizer = lsq_at(torch.full((301, 1) if channel else (), 0.3), per_channel=channel)
            found += value_and_gradient(lambda w, q=quantizer: distance(w, q, "mean", fused=True), weight)  # type: ignore[misc]
        results.append(found)
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "dampening": lambda w, fused: distance(w, LSQQuantizer(3).fit(w), "mean", fused),
    "kure": lambda w, fused: kurtosis_loss(w, 1.8, fused),
}


@pytest.mark.parametrize("name", LOSSES)
def test_another_layout_or_type_is_served_by_plain_operations(name: str) -> None:
    for weight in (normal((40, 30)).t(), normal((40, 30)).double(), normal((40, 30))[:, ::2]):
        assert not by_native_passes(LOSSES[name](weight.requires_grad_(), fused=True))


@pytest.mark.parametrize("name", LOSSES)
def test_it_can_be_differentiated_twice(name: str) -> None:
    second = []
    for fused in (True, False):
        weight = normal((6, 50)).requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[name](weight, fused), weight, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(*second)
    assert float(second[0].norm()) > 0


def method_of(name: str, model: nn.Module, **context: Any) -> Method:
    config = Dampening.Config(start=0.0, strength=2.0) if name == "dampening" else Kurtosis.Config(strength=2.0)
    method: Method = (Dampening if name == "dampening" else Kurtosis)(config, Context(target_bit=3, **context))
    method.prepare(model, NO_DATA)
    return method


def network() -> nn.Module:
    """With a weight that two layers share, and one that is not trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 7), nn.Linear(7, 3))
    model[1].weight = model[0].weight
    model[3].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", LOSSES)
def test_fused_off_is_the_same_penalty_by_plain_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, gradients = [], []
    for fused in (True, False):
        model = network()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        method, step = method_of(name, model, fused=fused), Step(9, 10, model)
        if fused is False:
            monkeypatch.setattr(dispatch, "serves", lambda *tensors, **more: pytest.fail("asked for"))
        value = method.penalty(step)
        assert isinstance(value, Tensor)
        value.backward()
        # All of it is there before any method's after_backward, which may hold weights back; and nothing comes twice.
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        assert method.after_backward(step) == 0
        assert all(torch.equal(p.grad, b) for p, b in zip(trained(model), before, strict=True))
        assert model[3].weight.grad is None
        values.append(float(value.detach()))
        gradients.append(torch.cat([gradient.flatten() for gradient in before]) - 1)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    # One was there, to which the gradient is added: that rounds to 6e-8.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=3e-7)
    assert float(gradients[1].norm()) > 1e-3


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", LOSSES)
def test_an_effective_weight_is_served_too(name: str) -> None:
    gradients = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 30))
        attach(model, weight_transform=lambda layer: nn.Tanh())
        value = method_of(name, model, fused=fused).penalty(Step(9, 10, model))
        assert isinstance(value, Tensor)
        value.backward()
        gradients.append(model[0].weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("methods", [["lsq", "dampening"], ["ste", "cga", "dampening"], ["ste", "cga", "kure"]])
def test_a_run_by_native_passes_is_the_plain_run(methods: list[str]) -> None:
    """cga holds gradients back after the backward pass, whatever comes before or after it: the penalty's too."""
    settings = {"dampening": {"strength": 3.0, "start": 0.0}, "kure": {"strength": 0.1}, "cga": {"start": 0.0}}
    lines: dict[str, list[dict[str, Any]]] = {"auto": [], "off": []}
    for how, found in lines.items():
        raw = {
            "methods": [{"name": name, **settings.get(name, {})} for name in methods],
            "target_bit": 3,
            "model": {"name": "mlp5", "width": 16},
            "data": {"name": "digits", "train_fraction": 0.1},
            # SGD: Adam makes a whole step of a gradient that is 0 but for rounding.
            "train": {"epochs": 2, "batch_size": 40, "learning_rate": 0.05, "optimizer": "sgd", "precision": "fp32"},
            "deploy": {"bits": [3], "scale": "keep_step"},
            "runtime": {"device": "cpu", "wandb": "off", "threads": 1, "compile": how},
        }
        train(build(complete(raw)), found.append)
    for one, other in zip(lines["auto"], lines["off"], strict=True):
        assert one[TRAIN_PENALTY] == pytest.approx(other[TRAIN_PENALTY], rel=1e-4)
        assert other[TRAIN_PENALTY] > 0
