"""DAQ on whole networks: without training and trained, its sites, its points, and what it takes from a network."""

from copy import deepcopy
from functools import cache, partial
from typing import Any

import pytest
import torch
from test_gptq import CALIBRATION, correlated, network
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import ActivationsConfig
from harness.core.layer_points import LayerPoints
from harness.methods.base import Context, observed_inputs
from harness.methods.daq import Daq
from harness.models import build_model
from harness.quantization import ActivationQuantizer, StaticQuantizer
from harness.quantization.deploy import round_rest, round_to_nearest
from harness.quantization.gaussian_steps import STEPS, DynamicGaussianQuantizer, GaussianQuantizer
from harness.quantization.layers import weight_layers
from harness.quantization.learned_activations import MovingRangeQuantizer
from harness.quantization.shaped_activations import Shifted
from harness.training.build import build
from harness.training.config import complete, component
from harness.training.loop import train

W4A4 = BitWidths(4, 4)
SAME = Context(activations=ActivationsConfig(calibration_batches=1, first_last="same"))
EDSR = {"name": "edsr", "blocks": 2, "features": 6}
VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}


@cache
def edsr() -> nn.Module:
    """With channels that differ in size, as those of networks without norms do."""
    model = build_model(component("model", EDSR), (3, 6, 6), 2, seed=0).eval().requires_grad_(False)
    with torch.no_grad():
        model.head.weight.mul_(torch.logspace(-1, 1, 6).view(-1, 1, 1, 1))  # type: ignore[union-attr, operator]
        for index in (0, 1):
            model.body[index].conv1.weight.mul_(torch.logspace(-1, 1, 6).view(-1, 1, 1, 1))  # type: ignore
    return model


def deployed(model: nn.Module, point: Any = W4A4, context: Context = SAME, **settings: Any) -> Any:
    """As the evaluator does it: DAQ, then rounding to nearest of what it leaves."""
    copy = deepcopy(model)
    Daq(Daq.Config(**settings), context).deploy(copy, point, CALIBRATION)
    how = (context.scale, context.quantizer, context.exclude, context.activations)
    return round_rest(copy, point, *how, calibration=observed_inputs(copy, CALIBRATION, context))


def rounded(model: nn.Module, point: Any = W4A4) -> nn.Module:
    seen = observed_inputs(model, CALIBRATION, SAME)
    return round_to_nearest(deepcopy(model), point, activations=SAME.activations, calibration=seen)


def held(model: nn.Module, slot: str = "input_quantizer") -> dict[str, Any]:
    found = {name.removesuffix(f".{slot}"): module for name, module in model.named_modules() if name.endswith(slot)}
    return {name: module for name, module in found.items() if isinstance(module, ActivationQuantizer)}


def settings(methods: Any = "daq", target: Any = "w4a4", **more: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "methods": methods,
        "target_bit": target,
        "model": VIT,
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 1, "batch_size": 40, "learning_rate": 1e-2, "precision": "fp32"},
        "activations": {"calibration_batches": 1, "first_last": "same"},
        "deploy": {"bits": ["w2a2", "w4a4"], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return raw | more


# Without training


def test_every_layer_has_a_gaussians_grid_and_relu_sites_are_known() -> None:
    model = edsr()
    found = deployed(model)
    for name, layer in weight_layers(found).items():
        weight = model.get_submodule(name).weight
        assert torch.equal(layer.weight, GaussianQuantizer(4)(weight)), name  # type: ignore[arg-type]
    inputs = held(found)
    assert set(inputs) == set(weight_layers(model))
    assert all(isinstance(each, DynamicGaussianQuantizer) and each.sigma_bits == 8 for each in inputs.values())
    assert {name for name, each in inputs.items() if not each.signed} == {"body.0.conv2", "body.1.conv2"}
    assert not any(each.training for each in inputs.values())


def test_scales_of_channels_that_cancel_matter_to_static_ranges_alone() -> None:
    torch.manual_seed(0)
    plain: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval().requires_grad_(False)
    scaled, scales = deepcopy(plain), torch.logspace(-1.5, 1.5, 8, 2)
    scaled[0].weight.mul_(scales.view(-1, 1, 1, 1))
    scaled[0].bias.mul_(scales)
    scaled[2].weight.div_(scales.view(1, -1, 1, 1))
    images = correlated(7)
    outputs, errors = plain(images), {}
    for name, how in (("daq", partial(deployed, sigma_bits=None)), ("rtn", rounded)):
        found = [how(model, LayerPoints.of({"0": "w8a8", "2": "w8a4"})) for model in (plain, scaled)]
        errors[name] = [float((each(images) - outputs).norm()) for each in found]
    assert errors["daq"][0] < errors["rtn"][0]
    assert errors["daq"][1] / errors["daq"][0] < 1.5 < errors["rtn"][1] / errors["rtn"][0]
    model = edsr()
    inputs_alone = deployed(model, BitWidths(2, 2), weights="run")
    assert all(
        torch.equal(layer.weight, rounded(model, BitWidths(2, 2)).get_submodule(name).weight)  # type: ignore[arg-type]
        for name, layer in weight_layers(inputs_alone).items()
    )
    assert isinstance(inputs_alone.head.input_quantizer, DynamicGaussianQuantizer)


def test_an_image_in_a_batch_is_that_image_alone() -> None:
    found, images = deployed(edsr()), correlated(7)[:3]
    torch.testing.assert_close(found(images), torch.cat([found(each[None]) for each in images]), rtol=1e-5, atol=1e-5)


def test_a_second_time_gives_the_same_and_the_source_stays() -> None:
    model = edsr()
    before, kinds = deepcopy(model.state_dict()), [type(each) for each in model.modules()]
    first, second = deployed(model).state_dict(), deployed(model).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [type(each) for each in model.modules()] == kinds


@pytest.mark.parametrize("point", [BitWidths(), BitWidths(3), BitWidths(4, None, 4)], ids=str)
def test_points_without_activations_are_not_served(point: BitWidths) -> None:
    assert not Daq.serves(point)
    assert Daq.serves(W4A4)
    model = network()
    Daq(Daq.Config(), SAME).deploy(model, point, CALIBRATION)
    assert all(torch.equal(value, network().state_dict()[key]) for key, value in model.state_dict().items())
    assert not held(model)


def test_points_by_layer_first_and_last_and_excluded_layers() -> None:
    model = network()
    found = deployed(model, LayerPoints.of({"0": "w2a3", "2": "float", "*": 4}))
    for index, bits in ((0, 2), (5, 4)):  # the last one has rounded weights alone
        assert torch.equal(found[index].weight, GaussianQuantizer(bits)(model[index].weight))  # type: ignore[arg-type]
    assert torch.equal(found[2].weight, model[2].weight)  # type: ignore[arg-type]
    assert {name: each.bits for name, each in held(found).items()} == {"0": 3}
    outer = deployed(model, W4A4, Context(activations=ActivationsConfig(calibration_batches=1)))
    assert {name: each.bits for name, each in held(outer).items()} == {"0": 8, "2": 4, "5": 8}
    left = deployed(model, W4A4, Context(exclude=("0",), activations=SAME.activations))
    assert torch.equal(left[0].weight, model[0].weight)  # type: ignore[arg-type]
    assert set(held(left)) == {"2", "5"}


def test_quirks_are_steps_of_one_bit_less_without_clipping() -> None:
    model = network()
    found = deployed(model, official_quirks=True)
    deviation = float(model[0].weight.detach().std())
    assert float(found[0].weight.unique().diff()[0]) == pytest.approx(deviation * STEPS[3], rel=1e-5)
    assert {each.quirk for each in held(found).values()} == {"index"}
    trained = network()
    Daq(Daq.Config(official_quirks=True), Context(target_bit="w4a4", activations=SAME.activations)).prepare(
        trained, CALIBRATION
    )
    assert float(trained[0].quantized_weight().detach().unique().diff()[0]) == pytest.approx(
        deviation * 1.596, rel=1e-5
    )  # type: ignore
    assert {each.quirk for each in held(trained).values()} == {"constant"}


# Trained


@cache
def session(methods: str = "daq", target: Any = "w4a4") -> Any:
    found = build(complete(settings(methods, target)))
    train(found, lambda metrics: None)
    return found


def test_what_was_trained_is_what_is_deployed_at_the_target() -> None:
    one = session()
    images = one.dataset.batch(one.dataset.val, slice(0, 30))[0]
    found = [one.evaluator.deployed(one.model, "w4a4", way) for way in ("rtn", "daq")]
    with torch.no_grad():
        expected = one.model.eval()(images)
        assert all(torch.equal(each(images), expected) for each in found)
    other = [one.evaluator.deployed(one.model, "w2a2", way) for way in ("rtn", "daq")]
    kinds = [{type(each) for each in held(each).values()} for each in other]
    assert kinds == [{StaticQuantizer}, {StaticQuantizer, DynamicGaussianQuantizer}], "those of products"


def test_a_target_of_weights_alone_leaves_inputs_in_float() -> None:
    one = build(complete(settings(target=3)))
    assert not held(one.model)
    assert {type(layer.weight_quantizer) for layer in weight_layers(one.model).values()} == {GaussianQuantizer}  # type: ignore


def test_products_of_attention_have_ranges() -> None:
    one = session()
    for model, kind in (
        (one.model, MovingRangeQuantizer),
        (one.evaluator.deployed(one.model, "w2a2", "daq"), StaticQuantizer),
    ):
        kinds = {name.rpartition(".")[2]: type(each) for name, each in held(model).items()}
        assert (kinds["qk_matmul"], kinds["av_matmul"], kinds["fc2"]) == (kind, kind, DynamicGaussianQuantizer)


def test_what_a_network_was_trained_to_add_stays() -> None:
    one = session("statsq")
    before = held(one.model)
    with torch.no_grad():
        for each in before.values():
            for name, value in each.named_parameters():
                if name in ("before", "after"):
                    value.normal_(0, 0.1)
    found = held(one.evaluator.deployed(one.model, "w4a4", "daq"))
    layers = {name: each for name, each in found.items() if name.endswith("fc2")}
    assert layers
    for name, each in layers.items():
        assert isinstance(each, Shifted)
        assert isinstance(each.quantizer, DynamicGaussianQuantizer)
        assert torch.equal(each.shift, (before[name].before + before[name].after).detach())


def test_the_grid_of_the_run_for_weights() -> None:
    wanted: Tensor | None = None
    for methods in ({"name": "daq", "weights": "run"}, "ste"):
        one = build(complete(settings(methods)))
        weight = one.model.get_submodule("blocks.0.mlp.fc1").quantized_weight().detach()  # type: ignore[operator]
        wanted = weight if wanted is None else wanted
        assert torch.equal(weight, wanted)
