"""The closed form of the oscillation regularizer is the gradient of its loss."""

import pytest
import torch
from plain_oscillation_loss import plain_gradient, plain_loss
from torch import Tensor, nn

from harness import OscillationRegularizer
from harness.core import registry
from harness.core.config_base import QuantizerConfig
from harness.models import build_model
from harness.oscillation.regularizer import oscillation_penalty
from harness.quantization import ClippedQuantizer, MaxAbsQuantizer
from harness.quantization.layers import weight_layers

BITS = range(2, 9)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """In norm; a difference from zero counts in full."""
    assert actual.shape == expected.shape
    assert bool(torch.isfinite(actual).all())
    norm = float(expected.double().norm())
    return float((actual.double() - expected.double()).norm()) / (norm or 1.0)


def agree(weight: Tensor, quantizer: MaxAbsQuantizer, limit: float, strength: float = 3.0) -> None:
    ratios = quantizer.ratio if isinstance(quantizer, ClippedQuantizer) else None
    value, gradient = plain_gradient(
        weight,
        quantizer.bits,
        strength,
        per_channel=quantizer.per_channel,
        ratios=ratios,
        detached=quantizer.scale_gradient == "detached",
    )
    before = weight.clone()
    own_value, own_gradient = oscillation_penalty(weight, quantizer, strength)
    assert torch.equal(weight, before), "the weight itself is to stay"
    assert own_gradient.dtype == weight.dtype
    assert own_value.shape == ()
    assert relative_difference(own_gradient, gradient) <= limit
    # the value is a sum of terms of both signs: its own size says nothing, that of its terms does
    scale = strength * float(weight.double().square().mean()) or 1.0
    assert abs(float(own_value) - float(value)) <= limit * scale


def random_weight(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


#: Both sides in the same type. fp32 sums of differences of squares lose digits: 4e-5 seen at 6 bits, 2e-4 at 8.
CASES = [(torch.float64, bits, 1e-10) for bits in BITS] + [(torch.float32, bits, 1e-4) for bits in range(2, 7)]


@pytest.mark.parametrize(("dtype", "bits", "limit"), CASES)
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["max", "mse"])
def test_gradient_and_value_equal_autograd(
    dtype: torch.dtype, bits: int, limit: float, scale_gradient: str, per_channel: bool, kind: str
) -> None:
    quantizer_type = ClippedQuantizer if kind == "mse" else MaxAbsQuantizer
    for seed, shape in enumerate([(16, 40), (6, 3, 3, 3), (1, 7)]):
        weight = random_weight(shape, seed, dtype)
        quantizer = quantizer_type(bits, per_channel, scale_gradient).fit(weight)  # type: ignore[arg-type]
        agree(weight, quantizer, limit)


def test_clipping_is_really_exercised() -> None:
    weight = random_weight((16, 40), 0, torch.float64)
    ratio = float(ClippedQuantizer(3).fit(weight).ratio)
    assert ratio < 0.95, "else the cases above would never clip"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_ties_of_the_largest_weight(bits: int, per_channel: bool) -> None:
    weight = random_weight((4, 30), 5, torch.float64).clamp(-1.5, 1.5)
    assert (weight == 1.5).sum() > 1
    assert (weight == -1.5).sum() > 1, "ties of both signs"
    agree(weight, MaxAbsQuantizer(bits, per_channel), 1e-10)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [MaxAbsQuantizer, ClippedQuantizer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros(bits: int, kind: type[MaxAbsQuantizer], dtype: torch.dtype) -> None:
    zeros = torch.zeros(3, 4, dtype=dtype)
    for per_channel in (False, True):
        value, gradient = oscillation_penalty(zeros, kind(bits, per_channel).fit(zeros), 10.0)
        assert float(value) == 0
        assert torch.equal(gradient, zeros)
    weight = random_weight((3, 40), bits, dtype)
    weight[1] = 0
    quantizer = kind(bits, True).fit(weight)
    _, gradient = oscillation_penalty(weight, quantizer, 10.0)
    assert torch.equal(gradient[1], torch.zeros(40, dtype=dtype))
    assert bool((gradient[0] != 0).any())
    if dtype == torch.float64:
        agree(weight, quantizer, 1e-10)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.7, -0.3, 1e-30, 0.0])
def test_one_weight_alone_sits_on_the_grid(bits: int, value: float) -> None:
    weight = torch.tensor([[value]], dtype=torch.float64)
    _, gradient = oscillation_penalty(weight, MaxAbsQuantizer(bits), 1.0)
    assert abs(float(gradient)) <= 1e-12 * abs(value)  # q = w always: R = 0, whatever w


def test_a_range_clipped_at_the_whole_of_it_is_not_clipped() -> None:
    for seed in range(40):
        weight = random_weight((1, 7), seed, torch.float32)
        quantizer = ClippedQuantizer(6, scale_gradient="detached")
        quantizer.fitted = True  # with ratio 1
        _, gradient = oscillation_penalty(weight, quantizer, 1.0)
        _, unclipped = oscillation_penalty(weight, MaxAbsQuantizer(6, scale_gradient="detached"), 1.0)
        assert torch.equal(gradient, unclipped), seed


def test_the_gradient_is_linear_in_strength() -> None:
    weight = random_weight((5, 9), 1, torch.float64)
    _, one = oscillation_penalty(weight, MaxAbsQuantizer(3), 1.0)
    _, eight = oscillation_penalty(weight, MaxAbsQuantizer(3), 8.0)
    assert torch.equal(eight, 8 * one)


def test_the_formula_of_the_docstring_by_hand() -> None:
    # Q = 1, s = 4: codes 1, 0, 1, 0. q - w = 0, -1, 1, 1; k - w/s = 0, -1/4, 1/4, 1/4; sum_j q_j (..) = 1
    weight = torch.tensor([[4.0, 1.0, 3.0, -1.0]], dtype=torch.float64)
    value, gradient = oscillation_penalty(weight, MaxAbsQuantizer(2), 6.0)
    assert gradient.tolist() == [[2 * 6 / 4 * x for x in (0 + 1, -1, 1, 1)]]
    assert float(value) == 6 * ((16 - 16) + (0 - 1) + (16 - 9) + (0 - 1)) / 4


def resnet18_layers(width: int) -> list[Tensor]:
    model = build_model(registry.load("model", "resnet18").Config(width=width), (3, 32, 32), 10, seed=0)
    layers = [layer.weight.detach() for layer in weight_layers(model).values()]
    assert len(layers) == 21
    return layers


@pytest.mark.parametrize(
    ("dtype", "bits", "limit"), [case for case in CASES if case[1] in (2, 3, 4, 6, 8)], ids=lambda x: str(x)
)
def test_resnet18(dtype: torch.dtype, bits: int, limit: float) -> None:
    ours, plain = [], []
    for weight in resnet18_layers(width=64 if bits == 3 else 16):  # of the full width once a type
        weight = weight.to(dtype)
        ours.append(oscillation_penalty(weight, MaxAbsQuantizer(bits), 1.0)[1].flatten().double())
        plain.append(plain_gradient(weight, bits, 1.0)[1].flatten())
        if dtype == torch.float64:
            assert relative_difference(ours[-1], plain[-1]) <= limit
    assert relative_difference(torch.cat(ours), torch.cat(plain)) <= limit


@pytest.mark.parametrize("settings", [QuantizerConfig(), QuantizerConfig(granularity="channel")])
def test_add_gradient_adds_autograd_of_the_summed_loss(settings: QuantizerConfig) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()
    model(torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    model[3].weight.grad = None  # a layer that the task loss did not reach
    value = OscillationRegularizer(model, 3, 2.0, settings).add_gradient()
    total = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if name in ("0.weight", "3.weight"):
            loss, gradient = plain_gradient(parameter, 3, 2.0, per_channel=settings.granularity == "channel")
            total += float(loss)
            expected = gradient + before[name] if name == "0.weight" else gradient
            # adding to the task's gradient rounds once more
            assert relative_difference(parameter.grad, expected) <= 1e-10
        else:
            assert torch.equal(parameter.grad, before[name]), f"{name} has no regularizer"
    assert float(value) == pytest.approx(total, rel=1e-10)


def test_a_tied_weight_is_regularized_once_and_a_frozen_one_never() -> None:
    first, second, frozen = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    frozen.weight.requires_grad_(False)
    OscillationRegularizer(nn.Sequential(first, second, frozen), 3, 1.0).add_gradient()
    assert frozen.weight.grad is None
    assert first.weight.grad is not None
    _, once = oscillation_penalty(first.weight.detach(), MaxAbsQuantizer(3), 1.0)
    torch.testing.assert_close(first.weight.grad, once)  # the largest weight's share is summed in another order


def test_excluded_layers_have_no_regularizer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    OscillationRegularizer(model, 3, 1.0, exclude=["1"]).add_gradient()
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None


def test_the_plain_loss_itself_by_hand() -> None:
    weight = torch.tensor([4.0, 1.0, 3.0, -1.0], dtype=torch.float64)
    assert float(plain_loss(weight, 2, 6.0)) == 6 * ((16 - 16) + (0 - 1) + (16 - 9) + (0 - 1)) / 4
