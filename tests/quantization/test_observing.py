"""What calibration sees of each input, and the ranges that follow from it."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from layers_common import images, network
from torch import Tensor, nn
from torch.nn import functional

from harness.core.errors import UserError
from harness.models import build_model
from harness.quantization import LearnedStepQuantizer, LSQQuantizer, StaticQuantizer, observe
from harness.quantization.layers import attach
from harness.quantization.observed import BINS, Observed, Recorder
from harness.quantization.quantizer import MaxAbsQuantizer
from harness.training.config import component


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(*parts: Tensor) -> Observed:
    recorder = Recorder()
    for part in parts:
        recorder.add(part, 1)
    return recorder.observed()


DATA = {
    "normal": drawn(20_000),
    "long tail": drawn(20_000) ** 3,
    "never negative": drawn(20_000).relu(),
    "mostly above": drawn(20_000).exp() - 0.2,
}


def test_the_histogram_is_that_of_the_final_width() -> None:
    parts = [drawn(3_000, seed=seed) * scale for seed, scale in enumerate((1e-3, 0.0, 40.0, 1.0, 3e4))]
    seen, values = recorded(*parts), torch.cat(parts)
    assert (seen.low, seen.high) == (float(values.min()), float(values.max()))
    assert BINS / 2 <= max(-seen.low, seen.high) / seen.width < BINS
    places = (values.double() / seen.width).floor().long() + BINS
    assert torch.equal(seen.counts, torch.bincount(places, minlength=2 * BINS))
    assert seen.mean_abs == pytest.approx(float(values.abs().mean()), rel=1e-5)


def naive_mse(x: Tensor, low: float, high: float, bits: int) -> float:
    quantizer = StaticQuantizer(bits).set_range(low, high)
    return float((quantizer(x) - x).square().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("x", DATA.values(), ids=list(DATA))
def test_mse_finds_a_range_of_little_error(x: Tensor, bits: int) -> None:
    seen = Observed.of(x)
    low, high = seen.range("mse", bits)
    assert min(seen.low, 0) <= low <= 0 <= high <= seen.high
    assert (low == 0) == seen.never_negative
    found = naive_mse(x, low, high, bits)
    ends = [min(seen.low, 0.0) * part for part in (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1)]
    starts = [seen.high * part for part in (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1)]
    best = min(naive_mse(x, start, end, bits) for start in ends for end in starts)
    assert found <= best * 1.05  # the search is over one factor first; bins round values to their middle
    assert found <= naive_mse(x, min(seen.low, 0), seen.high, bits) * 1.001


@pytest.mark.parametrize("percentile", [60, 99, 99.9, 100])
def test_percentiles_leave_out_what_they_say(percentile: float) -> None:
    for x in DATA.values():
        seen = Observed.of(x)
        low, high = seen.range("percentile", 4, percentile)
        exact = torch.quantile(x.double(), torch.tensor([1 - percentile / 100, percentile / 100], dtype=torch.float64))
        assert high == pytest.approx(max(float(exact[1]), 0.0), abs=2 * seen.width + 1e-3 * seen.high)
        assert low == pytest.approx(min(float(exact[0]), 0.0), abs=2 * seen.width - 1e-3 * seen.low)
    assert seen.range("percentile", 4, 100) == seen.range("max", 4) == (min(seen.low, 0), seen.high)


@pytest.mark.parametrize("x", [torch.zeros(5), torch.zeros(0), torch.full((3,), 2.0), torch.tensor([math.inf, 1.0])])
def test_ranges_of_degenerate_inputs_are_finite_and_hold_zero(x: Tensor) -> None:
    seen = Observed.of(x)
    for kind in ("max", "percentile", "mse"):
        low, high = seen.range(kind, 4)  # type: ignore[arg-type]
        assert low == 0
        assert math.isfinite(high)
        assert high >= 0


def inputs_by_hooks(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """What comes to the linear and convolution layers of a model in evaluation mode, over all batches."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: seen.setdefault(name, []).append(args[0]))  # type: ignore[misc]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(found) for name, found in seen.items()}


def test_each_layers_input_is_seen_as_the_float_network_has_it() -> None:
    plain, batches = network(), [images(), 2 * images(), images()[:2]]
    expected = inputs_by_hooks(deepcopy(plain), batches)
    model = network().train()
    attach(
        model,
        weight_quantizer=lambda layer: LSQQuantizer(2),
        input_quantizer=lambda layer: LearnedStepQuantizer(2).fit(torch.ones(1)),
    )
    before, random = deepcopy(model.state_dict()), torch.get_rng_state()
    seen = observe(model, iter(batches))
    assert list(seen) == ["0.input_quantizer", "4.input_quantizer", "5.1.input_quantizer"]
    for name, x in expected.items():
        found = seen[f"{name}.input_quantizer"]
        assert (found.low, found.high) == (float(x.min()), float(x.max()))
        assert int(found.counts.sum()) == x.numel()
        assert found.features == x[0].numel()
        assert found.mean_abs == pytest.approx(float(x.abs().mean()), rel=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert isinstance(model[0].input_quantizer, LearnedStepQuantizer)
    assert list(observe(network(), [images()], exclude="4")) == ["0.input_quantizer", "5.1.input_quantizer"]


def test_layers_are_in_the_order_of_their_first_call() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.never, self.first = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())  # type: ignore[no-any-return]

    seen = observe(Backwards(), [drawn(4, 3)])
    assert list(seen) == ["first.input_quantizer", "last.input_quantizer"]
    assert not seen["first.input_quantizer"].never_negative
    assert seen["last.input_quantizer"].never_negative


def vit(name: str = "vit_tiny", **options: Any) -> nn.Module:
    settings = {"name": name, "width": 16, "depth": 1, "heads": 2, **options}
    return build_model(component("model", settings), (1, 8, 8), 10, seed=0)


def test_operands_of_attention_are_seen_too() -> None:
    model, batch = vit(), drawn(3, 1, 8, 8)
    seen = observe(model, [batch])
    products = [name for name in seen if "matmul" in name]
    assert products == [
        f"blocks.0.attn.{product}.{slot}"
        for product in ("qk_matmul", "av_matmul")
        for slot in ("input_quantizer", "other_quantizer")
    ]
    scores = seen["blocks.0.attn.av_matmul.input_quantizer"]
    assert scores.never_negative
    assert scores.high <= 1
    assert scores.features == int(scores.counts.sum()) // 3
    assert not any("matmul" in name for name in observe(model, [batch], attention=False))
    assert not any("matmul" in name for name, _ in model.named_modules())


class Closed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.fused_attn = True  # type: ignore[assignment]
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class OwnProduct(nn.Module):
    """Attention without a name that says so."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.first, self.second = where, nn.Linear(3, 3), nn.Linear(3, 3)
        self.mixing = Mixing()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.where == "layer":
            return functional.linear(a, self.first.weight.detach() * 2) + b
        return self.mixing(a, b) if self.where == "module" else a @ b.T


class Mixing(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bi,bi->b", a, b)


def with_nan(model: nn.Module) -> None:
    with torch.no_grad():
        next(iter(model.parameters()))[0] = math.nan


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (network, [], "calibration: there is no batch"),
        (network, [images(), images() * math.nan], r"what comes to 0\.input_quantizer in batch 2 has NaN in it"),
        (lambda: (model := network(), with_nan(model))[0], [images()], r"what comes to 4\.input_quantizer in batch 1"),
        (lambda: OwnProduct("module"), [drawn(2, 3)], "module 'mixing' multiplies two activations, .*attention: false"),
        (lambda: OwnProduct("root"), [drawn(2, 3)], "the network itself multiplies two activations"),
        (Closed, [drawn(2, 3)], "module 'attention': the products inside .*activations.attention: false"),
    ],
)
def test_what_cannot_be_observed_is_refused(
    model: Callable[[], nn.Module], batches: list[Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        observe(model(), batches)


def test_products_of_activations_are_let_through_where_they_are_to_stay_in_float() -> None:
    for model, options in ((OwnProduct("module"), {"exclude": "mixing"}), (OwnProduct("root"), {"attention": False})):
        assert list(observe(model, [drawn(2, 3)], **options)) == ["first.input_quantizer", "second.input_quantizer"]  # type: ignore[arg-type]
    assert list(observe(OwnProduct("layer"), [drawn(2, 3)]))
    model = OwnProduct("module")
    with pytest.raises(UserError, match="mixing"):
        observe(model, [drawn(2, 3)])
    assert torch.isfinite(model(drawn(2, 3))).all()


def test_observation_takes_models_with_several_arguments_and_quantized_ones() -> None:
    model = nn.Bilinear(3, 3, 2)
    with pytest.raises(UserError, match="Bilinear"):
        observe(model, [drawn(2, 3)])

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a + b)  # type: ignore[no-any-return]

    a, b = drawn(4, 3), drawn(4, 3, seed=1)
    first, second = observe(Sum(), [(a, b)]), observe(Sum(), [{"a": a, "b": b}])
    assert first["layer.input_quantizer"].high == second["layer.input_quantizer"].high == float((a + b).max())
    quantized = Sum()
    attach(quantized, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    assert observe(quantized, [(a, b)])["layer.input_quantizer"].features == 3
