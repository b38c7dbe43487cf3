"""Layers with slots: attaching changes nothing, slots take part where the formula says, mistakes are refused."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from layers_common import Recording, images, network
from torch import Tensor, nn

from harness import LSQQuantizer, MaxAbsQuantizer, attach, round_to_nearest
from harness.core.errors import UserError
from harness.quantization.deploy import set_deployed
from harness.quantization.layers import QuantLayer, QuantMatMul


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
    assert torch.equal(product(a, b), (a + 1) @ (b * 2))
    assert [name for name, _ in calls] == ["a", "b"]
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
