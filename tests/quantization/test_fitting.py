"""Quantizers that take values from a weight: fitted where they fill a slot, refused where they never were."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quantizers_common import normal
from torch import Tensor, nn

from harness import LSQQuantizer, OscillationTracker, attach, round_to_nearest
from harness.core.errors import UserError
from harness.quantization import (
    ClippedQuantizer,
    CompandingQuantizer,
    DecoupledQuantizer,
    FrozenQuantizer,
    MaxAbsQuantizer,
    StatisticalQuantizer,
    WeightQuantizer,
)
from harness.quantization.layers import QuantMatMul

Build = Callable[[], WeightQuantizer]
STATEFUL: dict[str, Build] = {
    "lsq": lambda: LSQQuantizer(3),
    "lsq channel": lambda: LSQQuantizer(3, per_channel=True),
    "clipped": lambda: ClippedQuantizer(3),
    "clipped channel": lambda: ClippedQuantizer(3, per_channel=True),
    "companding": lambda: CompandingQuantizer(3),
    "companding range": lambda: CompandingQuantizer(2, per_channel=True, normalize=False),
    "decoupled": lambda: DecoupledQuantizer(3),
    "decoupled channel": lambda: DecoupledQuantizer(2, per_channel=True),
}
each_kind = pytest.mark.parametrize("build", STATEFUL.values(), ids=list(STATEFUL))


def small() -> nn.Sequential:
    """Weights as small as usual: far below a step of 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


@each_kind
def test_a_slot_fits_what_it_is_filled_with(build: Build) -> None:
    model, by_hand = small(), small()
    layers = attach(model, weight_quantizer=lambda layer: build())
    attach(by_hand, weight_quantizer=lambda layer: build().fit(layer.weight))
    for layer in layers.values():
        assert bool(layer.quantized_weight().any())
    batch = normal(5, 12)
    assert torch.equal(model(batch), by_hand(batch))
    assert list(model.state_dict()) == list(by_hand.state_dict())
    assert not any("fitted" in key for key in model.state_dict())


def test_the_line_of_the_readme_trains_with_learned_steps() -> None:
    model = small()
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))
    output = model(normal(5, 12))
    assert output.std(dim=0).min() > 0, "not the biases alone"
    output.square().sum().backward()
    assert all(bool(p.grad is not None and p.grad.any()) for p in model.parameters())


@each_kind
def test_alone_and_unfitted_it_raises(build: Build) -> None:
    weight, quantizer = 0.1 * normal(8, 12), build()
    message = rf"{type(quantizer).__name__} is not fitted: .*\.fit\(layer\.weight\), load a state dict, .*attach"
    for use in (quantizer, quantizer.codes, quantizer.threshold_distance):
        with pytest.raises(UserError, match=message):
            use(weight)
    with pytest.raises(UserError, match=message):
        quantizer.at_bits(4, "keep_range")(weight)
    assert bool(quantizer.fit(weight)(weight).any())
    assert bool(quantizer.at_bits(4, "keep_range")(weight).any())


@each_kind
def test_what_the_message_says_works(build: Build) -> None:
    model = small()
    layer = attach(model)["0"]
    layer.weight_quantizer = build()
    with pytest.raises(UserError) as caught:
        model(normal(5, 12))
    (line,) = re.findall(r"layer\.weight_quantizer = .*?\.fit\(layer\.weight\)", str(caught.value))
    exec(line, {"layer": layer, type(layer.weight_quantizer).__name__: type(layer.weight_quantizer)})
    assert bool(model(normal(5, 12)).any())
    again = build().fit(layer.weight)
    assert (layer.weight_quantizer.bits, layer.weight_quantizer.per_channel) == (again.bits, again.per_channel)


@each_kind
def test_loading_a_state_counts_as_fitting(build: Build) -> None:
    weight = 0.1 * normal(8, 12)
    source, alone = build().fit(weight), build()
    alone.load_state_dict(source.state_dict())
    assert torch.equal(alone(weight), source(weight))
    assert list(alone.state_dict()) == list(source.state_dict())
    network = nn.ModuleDict({"quantizer": build()})
    network.load_state_dict({f"quantizer.{name}": value for name, value in source.state_dict().items()})
    assert torch.equal(network["quantizer"](weight), source(weight))
    twin = copy.deepcopy(build())
    with pytest.raises(UserError, match="not fitted"):
        twin(weight)


def test_a_part_of_a_state_is_not_a_state() -> None:
    weight, quantizer = 0.1 * normal(8, 12), DecoupledQuantizer(3)
    state = DecoupledQuantizer(3).fit(weight).state_dict()
    del state["level_step"]
    quantizer.load_state_dict(state, strict=False)
    with pytest.raises(UserError, match="not fitted"):
        quantizer(weight)


def test_what_is_fitted_already_keeps_its_values() -> None:
    model = small()

    def own(layer: Any) -> LSQQuantizer:
        quantizer = LSQQuantizer(3).fit(layer.weight)
        quantizer.learned_step.data.fill_(0.2)
        return quantizer

    layers = attach(model, weight_quantizer=own)
    steps: list[Any] = [layer.weight_quantizer.learned_step for layer in layers.values()]
    assert [step.item() for step in steps] == pytest.approx([0.2, 0.2])
    by_hand = LSQQuantizer(3)
    by_hand.learned_step, by_hand.fitted = nn.Parameter(torch.tensor(0.2)), True
    assert torch.equal(by_hand(model[0].weight), model[0].quantized_weight())


def test_a_forward_pass_fits_nothing() -> None:
    model = small()
    (layer, _) = attach(model).values()
    layer.weight_quantizer = LSQQuantizer(3)  # past `fill`
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(UserError, match="LSQQuantizer is not fitted"):
            model(normal(5, 12))
    with pytest.raises(UserError, match="LSQQuantizer is not fitted"):
        OscillationTracker(model, 3)
    with pytest.raises(UserError, match="LSQQuantizer is not fitted"):
        round_to_nearest(model, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tenth(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 10


def test_it_is_fitted_to_the_weight_that_it_sees() -> None:
    for order in (("weight_transform", "weight_quantizer"), ("weight_quantizer", "weight_transform")):
        model = small()
        slots: dict[str, Callable[[Any], nn.Module]] = {
            "weight_transform": lambda layer: Tenth(),
            "weight_quantizer": lambda layer: LSQQuantizer(3),
        }
        attach(model, **{slot: slots[slot] for slot in order})
        expected = LSQQuantizer(3).fit(model[0].weight / 10)
        assert torch.equal(model[0].weight_quantizer.learned_step, expected.learned_step)


def test_a_quantizer_around_another_one() -> None:
    model = small()
    attach(model, weight_quantizer=lambda layer: FrozenQuantizer(LSQQuantizer(3), layer.weight))
    assert bool(model[0].quantized_weight().any())
    weight = model[0].weight.detach()
    loaded = FrozenQuantizer(LSQQuantizer(3), weight)
    with pytest.raises(UserError, match="LSQQuantizer is not fitted"):
        loaded(weight)
    loaded.load_state_dict(model[0].weight_quantizer.state_dict())
    assert torch.equal(loaded(weight), model[0].quantized_weight())


def test_nothing_is_asked_of_quantizers_without_state() -> None:
    weight = normal(8, 12)
    for quantizer in (MaxAbsQuantizer(3), StatisticalQuantizer(3)):
        assert quantizer.fitted
        assert bool(quantizer(weight).any())


def test_an_unfitted_quantizer_of_activations_is_refused_when_it_is_used() -> None:
    model = small()
    (first, _) = attach(model, input_quantizer=lambda layer: LSQQuantizer(8)).values()
    with pytest.raises(UserError, match="LSQQuantizer is not fitted"):
        model(normal(5, 12))
    for layer in (model[0], model[2]):
        layer.input_quantizer.fit(normal(5, 12))
    assert bool(model(normal(5, 12)).any())
    assert first is model[0]


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (lambda w: MaxAbsQuantizer(3), "bits=3, granularity=tensor, range=max|w|, step=max|w| / 3"),
        (lambda w: LSQQuantizer(3), "bits=3, granularity=tensor, range=not fitted, step=not fitted"),
        (lambda w: LSQQuantizer(3).fit(w), "bits=3, granularity=tensor, range=-3 to 3 steps, step=0.0577"),
        (
            lambda w: LSQQuantizer(4, True).fit(w),
            "granularity=channel, range=-7 to 7 steps, step=0.0378...0.378",
        ),
        (lambda w: ClippedQuantizer(8).fit(w), "bits=8, granularity=tensor, range=1 max|w|, step=range / 127"),
        (lambda w: StatisticalQuantizer(3), "bits=3, granularity=tensor, range=2 mean|w|, step=range / 4"),
        (lambda w: CompandingQuantizer(3).fit(w), "range=3 std(w), step=range / 3 on average"),
        (lambda w: DecoupledQuantizer(3).fit(w.to("meta")), "step=? (thresholds), ? (levels)"),
    ],
)
def test_what_a_quantizer_prints(build: Callable[[Tensor], WeightQuantizer], wanted: str) -> None:
    weight = 0.05 * torch.tensor([[1.0, -1.0, 1.0]])
    quantizer = build(weight if "channel" not in wanted else torch.cat([weight, 10 * weight]))
    assert wanted in repr(quantizer)
    assert repr(quantizer).startswith(type(quantizer).__name__ + "(bits=")


def test_empty_slots_are_not_printed() -> None:
    model = small()
    plain = repr(model)
    layers = attach(model)
    assert repr(model) == plain.replace("Linear", "QuantLinear")
    layers["2"].fill("weight_quantizer", MaxAbsQuantizer(2))
    lines = repr(model).splitlines()
    assert "(weight_quantizer): MaxAbsQuantizer(bits=2" in repr(model)
    assert len(lines) == len(plain.splitlines()) + 3
    assert "Unfilled" not in repr(model)
    assert "input_quantizer" in dict(layers["2"].named_children()), "printing leaves the slots there"
    assert repr(QuantMatMul()) == "QuantMatMul()"
