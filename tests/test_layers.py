"""Layers with slots: attaching changes nothing, slots take part where the formula says, mistakes are refused."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import LSQQuantizer, MaxAbsQuantizer, attach, registry, round_to_nearest
from harness.errors import UserError
from harness.layers import SLOTS, QuantConv2d, QuantLayer, QuantLinear, QuantMatMul, weight_layers
from harness.methods.base import set_deployed
from harness.models import build_model


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5, bias=False),
        nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)),
    )


def images() -> Tensor:
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


class Recording(nn.Module):
    """Applies a function, and remembers in which order and on what type it was called."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], calls: list[tuple[str, torch.dtype]]) -> None:
        super().__init__()
        self.name, self.function, self.calls = name, function, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, x.dtype))
        return self.function(x)


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
        "grad_quantizer": lambda y: y * y,
    }
    model = nn.Sequential(layer)
    attach(model, **{slot: lambda layer, slot=slot: Recording(slot, functions[slot], calls) for slot in SLOTS})
    inner = functional.linear if kind is nn.Linear else lambda *args: functional.conv2d(*args, stride=2)
    expected = inner(x - 3, (weight + 1) * 2, bias) ** 2
    assert torch.equal(model(x), expected)
    names = [name for name, _ in calls]
    assert sorted(names) == sorted(SLOTS), "each once"
    assert names.index("weight_transform") < names.index("weight_quantizer") < names.index("grad_quantizer")
    assert list(functions) == list(SLOTS)


def test_quantizers_compute_in_fp32_under_autocast() -> None:
    calls: list[tuple[str, torch.dtype]] = []

    def arithmetic(x: Tensor) -> Tensor:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32, "autocast is off in here"
        return x + 2.0**-20

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    slots = ("weight_transform", "weight_quantizer", "input_quantizer")
    layers = attach(model, **{slot: lambda layer, slot=slot: Recording(slot, arithmetic, calls) for slot in slots})
    with torch.autocast("cpu", torch.bfloat16):
        result = model(torch.randn(3, 4))
        weight = layers["0"].quantized_weight()
        product = QuantMatMul()
        product.fill("other_quantizer", Recording("other_quantizer", arithmetic, calls))
        product(torch.randn(2, 2).bfloat16(), torch.randn(2, 2).bfloat16())
    assert result.dtype == torch.bfloat16, "the layers themselves are under autocast"
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model[0].weight + 2.0**-20 + 2.0**-20)
    assert {dtype for _, dtype in calls} == {torch.float32}
    assert {name for name, _ in calls} == {*slots, "other_quantizer"}


def test_gradients_reach_weights_through_the_slots() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    model(torch.randn(4, 3)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight_quantizer.learned_step.grad is not None
    assert "0.weight_quantizer.learned_step" in dict(model.named_parameters())


def test_the_product_of_two_activations() -> None:
    product = QuantMatMul()
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(product(a, b), a @ b)
    assert not list(product.state_dict())
    calls: list[tuple[str, torch.dtype]] = []
    product.fill("input_quantizer", Recording("a", lambda x: x + 1, calls))
    product.fill("other_quantizer", Recording("b", lambda x: x * 2, calls))
    product.fill("grad_quantizer", Recording("y", lambda x: x - 5, calls))
    assert torch.equal(product(a, b), (a + 1) @ (b * 2) - 5)
    with pytest.raises(UserError, match="already holds"):
        product.fill("input_quantizer", nn.Tanh())
    with pytest.raises(UserError, match="unknown slot"):
        product.fill("weight_quantizer", nn.Tanh())


# Copies and tied weights


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_apart(again: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    twin = again(model)
    assert torch.equal(twin(images()), model(images()))
    before = model[4].quantized_weight().clone()
    with torch.no_grad():
        twin[4].weight.zero_()
        twin[4].weight_quantizer.learned_step.fill_(7.0)
    attach(twin, weight_transform=lambda layer: nn.Tanh())  # empty slots of a copy can still be filled
    assert torch.equal(model[4].quantized_weight(), before)
    assert not isinstance(model[4].weight_transform, nn.Tanh)


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_stay_tied() -> None:
    model = tied()
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    assert model[0].weight is model[2].weight
    assert len(list(model.parameters())) == 1
    reference = tied()
    deployed = round_to_nearest(reference, 3)
    assert torch.equal(deployed(torch.ones(1, 6)), model(torch.ones(1, 6)))


def test_tied_weights_are_deployed_as_each_layer_uses_them() -> None:
    model = tied()
    steps = iter([0.3, 0.1])
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    for layer in (model[0], model[2]):
        layer.weight_quantizer.learned_step.data.fill_(next(steps))
    batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    expected = model(batch)
    assert torch.equal(round_to_nearest(copy.deepcopy(model), 3)(batch), expected)


def test_an_embedding_that_shares_a_weight_stays_float() -> None:
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    before = embedding.weight.detach().clone()
    round_to_nearest(nn.ModuleList([embedding, head]), 3)
    assert torch.equal(embedding.weight, before)
    assert len(head.weight.unique()) <= 7


# Rounding to nearest


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_round_to_nearest_empties_the_slots(bits: int) -> None:
    model = network()
    latent = model[4].weight.detach().clone()
    biases = model[5][1].bias.detach().clone()
    assert round_to_nearest(model, bits) is model
    assert torch.equal(model[4].weight, MaxAbsQuantizer(bits)(latent))
    assert torch.equal(model[5][1].bias, biases)
    assert torch.equal(model[1].weight, torch.ones(4)), "norms stay float"


def test_round_to_nearest_to_float_keeps_the_latent_weights() -> None:
    model = network()
    attach(model, weight_transform=lambda layer: nn.Tanh(), weight_quantizer=lambda layer: MaxAbsQuantizer(2))
    latent = model[4].weight.detach().clone()
    round_to_nearest(model, "float")
    assert torch.equal(model[4].weight, latent.tanh())
    assert torch.equal(model[4].quantized_weight(), latent.tanh())


def test_round_to_nearest_with_bits_of_each_layer_and_exclusions() -> None:
    model = network()
    latent = copy.deepcopy(model.state_dict())
    round_to_nearest(model, {"0": 2, "5.1": "float"}, exclude=("4",))
    assert torch.equal(model[0].weight, MaxAbsQuantizer(2)(latent["0.weight"]))
    assert torch.equal(model[5][1].weight, latent["5.1.weight"])
    assert torch.equal(model[4].weight, latent["4.weight"])


@pytest.mark.parametrize("bits", [1, 0, 9, True, 2.5, "8"])
def test_round_to_nearest_refuses_impossible_bits(bits: object) -> None:
    with pytest.raises(UserError, match=r"2 to 8"):
        round_to_nearest(network(), bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", ["keep_step", "keep_range", "recalibrate"])
def test_a_learned_step_at_another_bit_width(scale: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    model[0].weight_quantizer.learned_step.data.fill_(0.05)
    weight = model[0].weight.detach().clone()
    at_own = round_to_nearest(copy.deepcopy(model), 3, scale)  # type: ignore[arg-type]
    assert torch.equal(at_own[0].weight, model[0].quantized_weight()), "its own bits: as trained, whatever the policy"
    other = round_to_nearest(copy.deepcopy(model), 4, scale)  # type: ignore[arg-type]
    step = {"keep_step": 0.05, "keep_range": 0.05 * 3 / 7, "recalibrate": float(weight.abs().max()) / 7}[scale]
    expected = (weight / step).round().clamp(-7, 7) * step
    torch.testing.assert_close(other[0].weight, expected, rtol=1e-6, atol=0)  # steps rounded to fp32


@pytest.mark.parametrize("scale", ["keep_step", "keep_range"])
def test_a_clipped_quantizer_at_another_bit_width_is_not_max_abs(scale: str) -> None:
    from harness.quantization import ClippedQuantizer

    model = nn.Sequential(nn.Linear(30, 30))
    model[0].weight.data = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    attach(model, weight_quantizer=lambda layer: ClippedQuantizer(3).fit(layer.weight))
    assert float(model[0].weight_quantizer.ratio) < 0.9
    deployed = round_to_nearest(copy.deepcopy(model), 2, scale)  # type: ignore[arg-type]
    assert not torch.equal(deployed[0].weight, MaxAbsQuantizer(2)(model[0].weight))


def test_what_a_method_deploys_is_left_alone() -> None:
    model = network()
    layers = attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(2))
    wanted = torch.randn(5, 64)  # on no grid
    set_deployed(layers["4"], wanted)
    round_to_nearest(model, 2)
    assert torch.equal(model[4].weight, wanted)
    assert isinstance(layers["4"], QuantLayer)
