"""The saturating nonlinearity: bounds, the warm start, what is deployed, gradients, and what it stacks with."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.methods.base import Calibration, Context
from harness.methods.satnl import SaturatingNonlinearity, latent_of, saturated
from harness.quantization import MaxAbsQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import QuantLayer, attach, weight_layers
from harness.quantization.slots import SlotTakenError
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train
from harness.training.session import Session


def network(std: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    for layer in (model[0], model[3]):
        nn.init.normal_(layer.weight, std=std)
    return model


def images() -> Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def prepare(model: nn.Module, exclude: tuple[str, ...] = (), **settings: Any) -> dict[str, QuantLayer]:
    method = SaturatingNonlinearity(SaturatingNonlinearity.Config(**settings), Context(exclude=exclude))
    method.prepare(model, Calibration(lambda index: (torch.empty(0), torch.empty(0))))
    return attach(model, exclude)


def effective(layer: QuantLayer) -> Tensor:
    return layer.weight_transform(layer.weight).detach()  # type: ignore[no-any-return]


def session_of(methods: list[Any], epochs: int = 2, **settings: Any) -> Session:
    return build(
        complete(
            {
                "methods": [{"name": name, **(settings if name == "satnl" else {})} for name in methods],
                "target_bit": 3,
                "model": {"name": "mlp5", "width": 24, "depth": 3},
                "data": {"name": "digits", "train_fraction": 0.2},
                "train": {"epochs": epochs, "batch_size": 32, "learning_rate": 1e-2, "precision": "fp32"},
                "deploy": {"bits": [2, 3, 8], "scale": "recalibrate"},
                "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
            }
        )
    )


def test_the_formula() -> None:
    latent, kappa = torch.tensor([-3.0, 0.0, 0.5, 40.0]), torch.tensor(2.0)
    wanted = [2 * math.tanh(value / 2) for value in latent.tolist()]
    assert saturated(latent, kappa).tolist() == pytest.approx(wanted)
    slope = torch.func.vmap(torch.func.grad(lambda v: saturated(v, kappa)))(latent)
    torch.testing.assert_close(slope, 1 - (saturated(latent, kappa) / kappa).square())


@pytest.mark.parametrize("kappa", [0.2, 1.0, 3.0])
def test_the_inverse_returns_weights_inside_and_clips_those_outside(kappa: float) -> None:
    bound = torch.tensor(kappa, dtype=torch.float64)
    weight = torch.linspace(-2 * kappa, 2 * kappa, 4001, dtype=torch.float64)
    there = saturated(latent_of(weight, bound), bound)
    inside = weight.abs() <= 0.99 * kappa
    torch.testing.assert_close(there[inside], weight[inside], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(there[~inside], 0.99 * kappa * weight[~inside].sign())


@pytest.mark.parametrize("settings", [{"kappa": 2.0}, {"kappa": 8.0, "kappa_unit": "std"}])
def test_a_warm_start_computes_what_the_float_network_did(settings: dict[str, Any]) -> None:
    model = network()
    before, weights = model(images()), {n: x.weight.detach().clone() for n, x in weight_layers(model).items()}
    layers = prepare(model, **settings)
    torch.testing.assert_close(model(images()), before)
    for name, layer in layers.items():
        torch.testing.assert_close(effective(layer), weights[name])
        assert not torch.equal(layer.weight, weights[name]), "v is not w"


def test_a_start_from_the_weights_leaves_them() -> None:
    model, untouched = network(), network()
    before = model(images())
    prepare(model, start="weights", kappa=0.5)
    for own, plain in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(own, plain)
    assert not torch.allclose(model(images()), before)


@pytest.mark.parametrize("start", ["function", "weights"])
@pytest.mark.parametrize("unit", ["absolute", "std"])
def test_effective_weights_stay_within_kappa(unit: str, start: str) -> None:
    model = network(std=1.0)
    spread = {name: float(layer.weight.detach().std(correction=0)) for name, layer in weight_layers(model).items()}
    for name, layer in prepare(model, kappa=0.7, kappa_unit=unit, start=start).items():
        kappa = 0.7 * (spread[name] if unit == "std" else 1)
        with torch.no_grad():
            layer.weight.mul_(100)
        assert float(effective(layer).abs().max()) == pytest.approx(kappa)


def test_kappa_is_of_the_weights_before_training() -> None:
    model = network()
    layer = prepare(model, kappa=3.0, kappa_unit="std")["3"]
    kappa = layer.weight_transform.get_buffer("kappa").clone()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(layer.weight_transform.get_buffer("kappa"), kappa)
    assert "3.weight_transform.kappa" in model.state_dict()


@pytest.mark.parametrize("unit", ["absolute", "std"])
def test_zeros(unit: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(model[0].weight)
    layer = prepare(model, kappa_unit=unit)["0"]
    model(torch.ones(2, 4)).sum().backward()
    assert torch.equal(effective(layer), torch.zeros(3, 4))
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0))  # type: ignore[arg-type]


def test_the_gradient_flows_and_is_smaller_for_larger_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.5, 1.5]]))
    layer = prepare(model, kappa=1.0)["0"]
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    expected = torch.tensor([[1.0, 1 - 0.5**2, 1 - 0.99**2]], dtype=torch.float64)
    torch.testing.assert_close(layer.weight.grad, expected)
    assert torch.autograd.gradcheck(
        lambda v: saturated(v, torch.tensor(1.0)), (layer.weight.detach().requires_grad_(),)
    )


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_deployed_weights_are_the_effective_ones_on_their_grid(bits: int) -> None:
    model = network()
    layers = prepare(model, kappa=1.5, kappa_unit="std")
    deployed = weight_layers(round_to_nearest(copy.deepcopy(model), bits))
    floating = weight_layers(round_to_nearest(copy.deepcopy(model), "float"))
    for name, layer in layers.items():
        assert torch.equal(deployed[name].weight, MaxAbsQuantizer(bits)(effective(layer)).detach())
        assert torch.equal(floating[name].weight, effective(layer))
        assert not torch.allclose(deployed[name].weight, MaxAbsQuantizer(bits)(layer.weight).detach())


def test_excluded_and_shared_weights() -> None:
    shared, again, excluded = (nn.Linear(6, 6) for _ in range(3))
    again.weight = shared.weight
    model = nn.Sequential(shared, again, excluded)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before, weight = model(x), excluded.weight.detach().clone()
    layers = prepare(model, exclude=("2",), kappa=0.6)
    assert list(layers) == ["0", "1"]
    assert torch.equal(excluded.weight, weight)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("methods", [["satnl", "ste"], ["satnl", "lsq"], ["lsq", "satnl"], ["satnl", "kure"]])
def test_stacks_train(methods: list[str]) -> None:
    session, lines = session_of(methods, kappa=2.0, kappa_unit="std"), []
    before = {name: effective(layer) for name, layer in attach(session.model).items()}
    train(session, lines.append)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    for name, layer in attach(session.model).items():
        kappa = layer.weight_transform.get_buffer("kappa")
        assert bool((effective(layer).abs() <= kappa).all())
        assert not torch.allclose(effective(layer), before[name])


@pytest.mark.parametrize("methods", [["satnl", "symreg"], ["symreg", "satnl"]])
def test_symmetry_is_asked_of_the_effective_weights(methods: list[str]) -> None:
    session, lines = session_of(methods, kappa=1.0, kappa_unit="std"), []
    train(session, lines.append)
    from harness.methods.symreg import asymmetry

    layers = attach(session.model).values()
    own = torch.stack([asymmetry(effective(layer)) for layer in layers]).mean()
    latent = torch.stack([asymmetry(layer.weight.detach()) for layer in layers]).mean()
    assert lines[-1]["symreg/asymmetry"] == pytest.approx(float(own))
    assert float(latent) > 1.01 * float(own)


def test_the_codes_trained_through_are_of_the_effective_weight() -> None:
    session = session_of(["satnl", "ste"], kappa=1.0, kappa_unit="std", start="weights")
    for layer in attach(session.model).values():
        assert torch.equal(layer.quantized_weight(), MaxAbsQuantizer(3)(effective(layer)))


def test_a_second_transform_is_refused_in_one_sentence() -> None:
    model = network()
    prepare(model)
    with pytest.raises(SlotTakenError, match="slot weight_transform already holds Saturation, so Saturation cannot"):
        prepare(model)


def test_it_needs_no_target_bit() -> None:
    raw = {
        "methods": ["satnl"],
        "watch_bit": 3,
        "model": {"name": "mlp5"},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
        "deploy": {"bits": [3], "scale": "recalibrate"},
    }
    assert complete(raw).target_bit is None


@pytest.mark.parametrize("methods", [["satnl", "oscillation"], ["oscillation", "satnl"]])
def test_a_gradient_in_closed_form_past_the_transform_is_refused(methods: list[str]) -> None:
    raw = {"methods": methods, "target_bit": 3, "model": {"name": "mlp5", "width": 8}, "data": {"name": "digits"}}
    with pytest.raises(SlotTakenError, match="oscillation adds its gradient to the trained weights themselves"):
        build(complete({**raw, "deploy": {"scale": "recalibrate"}, "runtime": {"device": "cpu", "wandb": "off"}}))


def test_a_learned_step_begins_from_the_effective_weight() -> None:
    steps = []
    for methods in (["satnl", "lsq"], ["lsq", "satnl"]):
        raw = {"methods": methods, "target_bit": 3, "model": {"name": "mlp5", "width": 8}, "data": {"name": "digits"}}
        session = build(complete({**raw, "deploy": {"scale": "recalibrate"}, "runtime": {"device": "cpu"}}))
        steps.append(session.model.get_parameter("layer1.weight_quantizer.learned_step").item())
    assert steps[0] == pytest.approx(steps[1], rel=1e-6)
