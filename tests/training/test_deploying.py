"""`harness.deploy`: networks of one's own are deployed as the harness deploys those of its runs."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from layers_common import images, network
from torch import Tensor, nn

import harness
from harness import LSQQuantizer, MaxAbsQuantizer, attach, deploy, round_to_nearest
from harness.core import registry
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.quantization.layers import weight_layers
from harness.training.build import build
from harness.training.config import complete
from harness.training.session import Session

SETTINGS: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 20},
    "ohq": {"bits": [2, 4], "images": 20, "draws": 1},
    "erq": {"images": 40},
}
HEAD8 = LayerPoints.of({"*": 4, "layer3": 8})
SERVED: list[tuple[str, Any]] = [
    *(("gptq", point) for point in (2, "w4a8", HEAD8)),
    *((name, "w4a8") for name in ("rtn", "bn_reestimation", "ohq", "erq")),
    *(("adaround", HEAD8), ("daq", "w4a4")),
]


@cache
def session(method: str) -> Session:
    raw: dict[str, Any] = {
        "methods": method,
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 12, "depth": 3},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 1, "batch_size": 40},
        "deploy": {"bits": [2], "scale": "keep_range", "methods": [{"name": n, **s} for n, s in SETTINGS.items()]},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }  # fmt: skip
    return build(complete(raw))


@pytest.mark.parametrize("method", ["none", "lsq"])
@pytest.mark.parametrize(("name", "point"), SERVED, ids=str)
def test_it_is_what_the_evaluator_of_a_run_makes(method: str, name: str, point: Any) -> None:
    one = session(method)
    inputs = list(one.evaluator.calibration.inputs(one.evaluator.calibration.different or 1))
    before = deepcopy(one.model.state_dict())
    how = {"name": name, **SETTINGS.get(name, {})}
    own = deploy(one.model, point, how, iter(inputs), scale="keep_range")
    wanted = one.evaluator.deployed(one.model, point, name)
    assert own.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in own.state_dict().items())
    assert torch.equal(own(inputs[0]), wanted(inputs[0]))
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())


def test_a_network_that_is_deployed_already_is_refused() -> None:
    first = deploy(network(), 8, "rtn")
    for name in ("rtn", "gptq", "adaround", "ohq"):
        with pytest.raises(UserError, match="every layer is deployed already"):
            deploy(first, 3, name, [images()])
    deploy(first, 8, "bn_reestimation", [images()])  # it rounds nothing itself


def test_a_network_of_timm_at_4_bits() -> None:
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 4}
    model = timm.create_model("test_vit", **sizes)
    x = torch.randn(60, 3, 16, 16)
    deployed = deploy(model, "w4", "gptq", list(x.split(20)), exclude="head")
    rounded = round_to_nearest(deepcopy(model).eval(), "w4", exclude="head")
    wanted = model.eval()(x)
    assert (deployed(x) - wanted).square().mean() < (rounded(x) - wanted).square().mean()
    for name in weight_layers(model, "head"):
        assert deployed.get_parameter(f"{name}.weight").unique().numel() <= 15
    assert torch.equal(deployed.head.weight, model.head.weight)  # type: ignore[union-attr, arg-type]


def test_layers_keep_their_trained_bits_and_what_attach_left_out_stays() -> None:
    model = network()
    attach(model, "0", weight_quantizer={"*": lambda layer: LSQQuantizer(2), "5.1": lambda layer: LSQQuantizer(4)})
    for bits in (None, "trained", {"5.1": 4}):
        deployed = deploy(model, bits, "gptq", [images()])
        counts = {name: deployed.get_parameter(f"{name}.weight").unique().numel() for name in ("4", "5.1")}
        assert counts["4"] <= 3 < counts["5.1"] <= 15
        assert torch.equal(deployed.get_parameter("0.weight"), model.get_parameter("0.weight"))
    nearest = round_to_nearest(deepcopy(model))
    assert not torch.equal(deployed.get_parameter("4.weight"), nearest.get_parameter("4.weight"))
    attach(model, "0", input_quantizer=lambda layer: LSQQuantizer(8).fit(images()))
    assert isinstance(deploy(model, "trained", "gptq", [images()])[4].input_quantizer, LSQQuantizer)  # type: ignore[index]


X = [images()]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"method": "gtpq"}, r"unknown deploy method 'gtpq'; did you mean 'gptq'\? \(legal: .*rtn"),
    "no deployment": ({"method": "kure"}, r"method 'kure' has no deployment of its own"),
    "no name": ({"method": {"images": 3}}, r"unknown deploy method 'None'"),
    "settings by name": ({"method": {"name": "gptq"}, "damping": -1}, r"method 'gptq': damping: "),
    "setting": ({"imges": 3}, r"method 'gptq': imges: unknown key; did you mean 'images'"),
    "value": ({"method": {"name": "gptq", "images": 0}}, r"method 'gptq': images: "),
    "rtn's": ({"method": "rtn", "images": 3}, r"rtn \(round-to-nearest\) has no settings, got images"),
    "bits": ({"bits": 9}, r"bits: 9 is no bit-width"),
    "bits of a layer": ({"bits": {"4": 9}}, r"bits: layers: 4: 9: no bit-width"),
    "layer": ({"bits": {"5.2": 4}}, r"unknown layer in bits '5\.2'; did you mean '5\.1'"),
    "nothing trained": ({"bits": None}, r"bits: no layer has a quantizer of its own"),
    "float": ({"bits": "float"}, r"bits: 'gptq' does nothing in float; give 2 to 8"),
    "point": ({"method": "erq"}, r"bits: 'erq' does nothing at 4 bits; give a point such as w4a4"),
    "by layer": ({"method": "ohq", "bits": {"4": 4}}, r"bits: 'ohq' does nothing at .*; give 2 to 8"),
    "keys and values": ({"bits": "w4kv4"}, r"bits: w4kv4: this network keeps no cache"),
    "not its network": ({"method": "any_precision"}, r"'any_precision' deploys networks that it trained: .* runs"),
    "norms": (
        {"method": "daq", "bits": "w4a4", "quantizer": {"norms": "quantized"}},
        r"quantizer\.norms: 'quantized' does not go with method 'daq'",
    ),
    "no calibration": ({"calibration": None}, r"calibration: gptq needs batches of inputs: give calibration=\[x, "),
    "no batch": ({"calibration": []}, r"calibration: there is no batch of inputs"),
    "a tensor": ({"calibration": images()}, r"calibration is a tensor; give batches: \[x\]"),
    "pairs": ({"calibration": [(images(), 1)]}, r"calibration: batch 1 is a tuple; give one tensor \(N, "),
    "labels": ({"method": "mpiq"}, r"'mpiq' needs labels.* \(python -m harness.evaluate RUN --deploy mpiq\)"),
    "task": ({"task": "clasification"}, r"unknown task 'clasification'; did you mean 'classification'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    given, said = REFUSED[what]
    with pytest.raises(UserError, match=said):
        deploy(network(), **{"bits": 4, "method": "gptq", "calibration": X, **given})


@pytest.mark.parametrize("name", registry.deploy_methods())
def test_every_method_with_a_deployment_is_served_or_says_why_not(name: str) -> None:
    few = {"adaround": {"iterations": 5}, "ohq": {"images": 2, "draws": 1}}.get(name, {})
    if name in ("any_precision", "kivi", "mpiq", "wkvquant"):
        with pytest.raises(UserError, match=f"'{name}'"):
            deploy(network(), "w4a4", name, X, **few)
    else:
        assert deploy(network(), "w4a4", name, X, **few)[4].weight.unique().numel() <= 255  # type: ignore[index]


@pytest.mark.parametrize("name", ["gptq", "adaround", "erq", "ohq", "daq"])
def test_a_network_without_slots_is_deployed_as_one_with_empty_slots(name: str) -> None:
    plain, slotted = network(), network()
    attach(slotted)
    few = {"adaround": {"iterations": 5}, "ohq": {"images": 2, "draws": 1}}.get(name, {})
    first, second = (deploy(model, "w4a4", name, X, **few) for model in (plain, slotted))
    assert torch.equal(first(images()), second(images()))
    assert type(plain[4]) is nn.Linear


def test_activations_are_observed_anew_where_the_method_changes_them() -> None:
    model = network()
    x = [images(), 3 * images()]
    deployed = deploy(model, "w8a8", "bn_reestimation", x, activations={"calibration_batches": 2})
    alone = round_to_nearest(deepcopy(model).eval(), "w8a8", calibration=x)
    assert not torch.equal(deployed[1].running_mean, alone[1].running_mean)  # type: ignore[index]
    assert not torch.equal(_step(deployed), _step(alone))


def _step(model: nn.Module) -> Tensor:
    step: Tensor = model.get_submodule("4.input_quantizer").grid(torch.zeros(1))[0]  # type: ignore[operator]
    return step


def test_it_is_a_name_of_the_library() -> None:
    assert "deploy" in harness.__all__
    assert isinstance(deploy(nn.Sequential(nn.Linear(4, 2)), 4, "gptq", [torch.randn(8, 4)]), nn.Sequential)
    attached = nn.Sequential(nn.Linear(4, 2))
    attach(attached, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    assert deploy(attached, 3, "rtn")[0].weight.unique().numel() <= 7  # type: ignore[index]
