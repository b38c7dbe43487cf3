"""Layers with slots: attaching changes nothing, slots take part where the formula says, mistakes are refused."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from layers_common import Recording, images, network
from torch import Tensor, nn
from torch.nn import functional

from harness import LSQQuantizer, MaxAbsQuantizer, attach, round_to_nearest
from harness.core import registry
from harness.core.errors import UserError
from harness.models import build_model
from harness.quantization.layers import SLOTS, QuantConv2d, QuantLinear, weight_layers

# Attaching


def test_attaching_changes_neither_names_nor_objects() -> None:
    model = network()
    reference = copy.deepcopy(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    layers = attach(model)
    assert list(layers) == ["0", "4", "5.1"]
    assert list(model.state_dict()) == list(reference.state_dict())
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    for name, module in modules.items():
        assert model.get_submodule(name) is module
    assert isinstance(model[0], QuantConv2d)
    assert isinstance(model[0], nn.Conv2d)
    assert isinstance(model[4], QuantLinear)
    assert type(model[1]) is nn.BatchNorm2d


def test_empty_slots_are_bit_identical_also_after_a_step() -> None:
    plain, slotted = network(), network()
    attach(slotted)
    for model in (plain, slotted):
        model(images()).square().sum().backward()
        torch.optim.Adam(model.parameters(), 0.01).step()
    for (name, one), (_, other) in zip(plain.named_parameters(), slotted.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(plain(images()), slotted(images()))
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(plain.to(dtype)(images().to(dtype)), slotted.to(dtype)(images().to(dtype)))


def test_a_float_state_dict_loads_unchanged() -> None:
    trained = network()
    with torch.no_grad():
        trained[4].weight.add_(1)
    fresh = network()
    attach(fresh, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh[4].weight, trained[4].weight)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "tiny_vit"])
def test_models_of_the_harness_stay_bit_identical(name: str) -> None:
    config = registry.load("model", name).Config(name=name)
    model = build_model(config, (3, 32, 32), 10, seed=0).eval()
    batch = torch.rand(2, 3, 32, 32)
    before = model(batch)
    assert len(attach(model)) > 10
    assert torch.equal(model(batch), before)


def test_one_quantizer_a_layer() -> None:
    layers = attach(network(), weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    assert len({id(layer.weight_quantizer) for layer in layers.values()}) == 3


def test_attaching_twice_keeps_what_is_there() -> None:
    model = network()
    first = attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    quantizers = [layer.weight_quantizer for layer in first.values()]
    second = attach(model, input_quantizer=lambda layer: nn.Tanh())
    assert [layer.weight_quantizer for layer in second.values()] == quantizers


def test_a_taken_slot_is_refused() -> None:
    model = network()
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    with pytest.raises(UserError, match=r"weight_quantizer already holds MaxAbsQuantizer.*LSQQuantizer"):
        attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))
    with pytest.raises(UserError, match=r"unknown slot 'weight_quantiser'; did you mean 'weight_quantizer'"):
        attach(model, weight_quantiser=lambda layer: LSQQuantizer(3))


@pytest.mark.parametrize(
    ("filling", "wanted"),
    [
        ({"*": 4, "5.1": 8}, {"0": 4, "4": 4, "5.1": 8}),
        ({"5.1": 8, "*": 4}, {"0": 4, "4": 4, "5.1": 8}),
        ({"5*": 3, "?": 5, "5.1": 8}, {"0": 5, "4": 5, "5.1": 8}),
        ({"[45]*": 3, "5*": 8}, {"4": 3, "5.1": 3}),
        ({"*": 4, "0": None}, {"4": 4, "5.1": 4}),
        ({}, {}),
    ],
    ids=str,
)
def test_slots_are_filled_by_layer_as_round_to_nearest_reads_bits(
    filling: dict[str, int | None], wanted: dict[str, int]
) -> None:
    model, given = network(), {key: bits and partial(quantizer_of, bits) for key, bits in filling.items()}
    layers = attach(model, weight_quantizer=given)  # type: ignore[arg-type]
    quantizers = {name: layer.weight_quantizer for name, layer in layers.items()}
    filled = {name: each.bits for name, each in quantizers.items() if isinstance(each, MaxAbsQuantizer)}
    assert (list(layers), filled) == (["0", "4", "5.1"], wanted)
    if filling:
        same = round_to_nearest(network(), {key: bits or "float" for key, bits in filling.items()})
        assert torch.equal(round_to_nearest(model).eval()(images()), same.eval()(images()))


def quantizer_of(bits: int, layer: nn.Module) -> MaxAbsQuantizer:
    return MaxAbsQuantizer(bits)


def test_each_slot_takes_functions_by_layer() -> None:
    seen: list[str] = []
    functions = {"5.1": lambda layer: seen.append(layer.weight.shape[1]) or nn.Tanh()}  # type: ignore[func-returns-value]
    layers = attach(network(), **dict.fromkeys(SLOTS, functions))
    assert seen == [5] * len(SLOTS)
    assert all(isinstance(getattr(layers["5.1"], slot), nn.Tanh) for slot in SLOTS)


WEIGHT, INPUT = "weight_quantizer", "input_quantizer"


@pytest.mark.parametrize(
    ("slot", "filling", "said"),
    [
        (WEIGHT, {"5.2": nn.Tanh}, r"unknown layer in weight_quantizer '5\.2'; did you mean '5\.1'"),
        (WEIGHT, {"head*": nn.Tanh}, r"layer in weight_quantizer 'head\*' \(legal: 0, 1, 4, 5\.0, 5\.1\)"),
        (INPUT, {"5.0": nn.Tanh}, r"unknown layer in input_quantizer '5\.0'.*\(legal: 0, 4, 5\.1\)"),
        (WEIGHT, {"4": LSQQuantizer(8)}, r"quantizer: 4: LSQQuantizer is not a function.*write '4': lambda layer: "),
        (WEIGHT, {"*": 4}, r"weight_quantizer: \*: int is not a function.*write '\*': lambda layer: "),
        (WEIGHT, LSQQuantizer, r"LSQQuantizer: it takes bits, not a layer.*lambda layer: LSQQuantizer\(4\)"),
        (WEIGHT, partial(LSQQuantizer, 4), r"LSQQuantizer: it takes bits, not a layer"),
    ],
    ids=str,
)
def test_what_cannot_fill_slots_by_layer_is_refused(slot: str, filling: Any, said: str) -> None:
    model = network()
    with pytest.raises(UserError, match=said):
        attach(model, norms=True, **{slot: filling})
    if isinstance(filling, dict):
        assert type(model[0]) is nn.Conv2d, "refused before anything changes"


NAMED = r"weight_quantizer=lambda layer: LSQQuantizer\(4\)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((LSQQuantizer(4),), rf"^exclude: LSQQuantizer was given; what fills a slot .* {NAMED} \(slots: weight_tr"),
        (((), LSQQuantizer(4)), rf"^norms: LSQQuantizer was given; .* {NAMED}"),
        ((lambda layer: LSQQuantizer(4),), r"^exclude: a function was given; .* weight_quantizer=lambda layer: \.\.\."),
        (({"*": lambda layer: LSQQuantizer(4)},), r"^exclude: dict was given"),
    ],
)
def test_what_fills_a_slot_needs_the_name_of_the_slot(given: tuple[Any, ...], said: str) -> None:
    model = network()
    with pytest.raises(UserError, match=said):
        attach(model, *given)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("slot", SLOTS)
def test_an_instance_for_all_layers_is_told_the_function(slot: str) -> None:
    with pytest.raises(
        UserError, match=rf"{slot}: LSQQuantizer is not a .*so write {slot}=lambda layer: LSQQuantizer\(4\)$"
    ):
        attach(network(), **{slot: LSQQuantizer(4)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"^{slot}: the function must take a layer, and nothing else"):
        attach(network(), **{slot: lambda: LSQQuantizer(4)})  # type: ignore[arg-type, misc]


def test_exclusions_are_globs() -> None:
    model = network()
    assert list(weight_layers(model, ["5.*"])) == ["0", "4"]
    assert list(weight_layers(model, ["0", "?"])) == ["5.1"]
    assert list(weight_layers(model, ["[45]*"])) == ["0"]
    attach(model, exclude=["4"], weight_quantizer=lambda layer: MaxAbsQuantizer(2))
    assert type(model[4]) is nn.Linear
    model(images())
    assert len(model[0].quantized_weight().unique()) == 3
    with pytest.raises(UserError, match=r"unknown layer in exclude '5\.2'; did you mean '5\.1'"):
        weight_layers(model, ["5.2"])


def test_torchs_attention_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    with pytest.raises(UserError, match=r"'attention'.*exclude 'attention\*'"):
        attach(model)
    assert list(attach(model, ["attention*"])) == ["head"]


def test_a_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight * 2)

    class Renamed(nn.Linear):
        pass

    with pytest.raises(UserError, match=r"'0': Scaled computes its own forward or weight"):
        attach(nn.Sequential(Scaled(2, 2)))
    assert list(attach(nn.Sequential(Scaled(2, 2), Renamed(2, 2)), ["0"])) == ["1"]


def test_a_convolution_with_a_conv_forward_of_its_own_is_refused() -> None:
    class Standardized(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight - weight.mean(), bias)

    with pytest.raises(UserError):
        attach(nn.Sequential(Standardized(2, 2, 1)))


def test_a_parametrized_layer_is_refused_or_kept() -> None:
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    batch = torch.randn(2, 3)
    before = model(batch)
    try:
        attach(model)
    except UserError:
        return
    assert torch.equal(model(batch), before)


# The formula


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_slots_stand_where_the_formula_says(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3) if kind is nn.Linear else nn.Conv2d(4, 3, 2, stride=2)
    x = torch.randn(2, 4) if kind is nn.Linear else torch.randn(2, 4, 6, 6)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()  # type: ignore[union-attr]
    calls: list[tuple[str, torch.dtype]] = []
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "weight_transform": lambda w: w + 1,
        "weight_quantizer": lambda w: w * 2,
        "input_quantizer": lambda x: x - 3,
        "grad_input_quantizer": lambda gradient: gradient * 5,
        "grad_weight_quantizer": lambda gradient: gradient * 7,
    }
    model = nn.Sequential(layer)
    attach(model, **{slot: lambda layer, slot=slot: Recording(slot, functions[slot], calls) for slot in SLOTS})
    inner = functional.linear if kind is nn.Linear else lambda *args: functional.conv2d(*args, stride=2)
    expected = inner(x - 3, (weight + 1) * 2, bias)
    x.requires_grad_()
    y = model(x)
    assert torch.equal(y, expected)
    y.backward(torch.ones_like(y))
    names = [name for name, _ in calls]
    assert sorted(names) == sorted(SLOTS), "each once"
    assert names.index("weight_transform") < names.index("weight_quantizer") < names.index("grad_input_quantizer")
    assert list(functions) == list(SLOTS)
    assert torch.equal(model[0].bias.grad, 7 * torch.ones_like(y).transpose(0, 1).flatten(1).sum(1))


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.GRU(2, 2), nn.Bilinear(2, 2, 2)])
def test_a_layer_whose_weights_would_stay_float_is_refused_until_excluded(layer: nn.Module) -> None:
    model = nn.ModuleDict({"odd": layer, "linear": nn.Linear(2, 2)})
    with pytest.raises(UserError, match=rf"'odd': weights of {type(layer).__name__} cannot be quantized; exclude 'odd"):
        attach(model)
    assert list(attach(model, ["odd*"])) == ["linear"]


@pytest.mark.parametrize("channels", [2, 4, 8])
@pytest.mark.parametrize("stride", [2, (1, 3)])
def test_gradients_of_strided_1x1_convolutions_over_few_channels(channels: int, stride: int | tuple[int, int]) -> None:
    """torch's own crashes the process here on some processors, waits for ever, or is wrong."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, 1, stride=stride)
    exact = copy.deepcopy(plain).double()
    model = nn.Sequential(plain).to(memory_format=torch.channels_last)
    attach(model)
    x = torch.randn(8, channels, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    other = x.detach().double().contiguous().requires_grad_()
    y, expected = model(x), exact(other)
    assert y.shape == expected.shape
    pull = torch.randn(expected.shape, dtype=torch.float64)
    y.backward(pull.float())
    expected.backward(pull)
    for found, wanted in ((y, expected), (x.grad, other.grad), (plain.weight.grad, exact.weight.grad)):
        assert found is not None
        assert wanted is not None
        # 2048 products of fp32 in a sum: 1e-6 relative in norm.
        assert (found.double() - wanted).norm() <= 1e-5 * wanted.norm()
