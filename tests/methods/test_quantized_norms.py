"""`quantizer.norms: quantized`: everything as a plain loop over all modules with a weight has it, norms among them."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from naive_tracker import count
from plain_oscillation_loss import plain_loss
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from harness import OscillationRegularizer, OscillationTracker, attach, round_to_nearest
from harness.core import registry
from harness.core.errors import Stopped, UserError
from harness.methods import find
from harness.methods.base import Calibration, Context, Step
from harness.methods.bn_reestimation import BatchNormReestimation
from harness.methods.oscillation import Oscillation
from harness.methods.ste import StraightThrough
from harness.models import build_model
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import weight_layers
from harness.quantization.norms import QuantNorm, is_norm
from harness.records import schema
from harness.training.build import build
from harness.training.config import complete, component
from harness.training.loop import train
from harness.training.run import RunContext, run

QUANTIZED = {"norms": "quantized"}
FOLLOWING = [
    "adaround",
    "bn_reestimation",
    "erq",
    "freezing",
    "gptq",
    "kivi",
    "lsq",
    "mpiq",
    "none",
    "ohq",
    "oscillation",
    "pqn",
    "statquant",
    "ste",
    "wkvquant",
]
CALIBRATION = Calibration(lambda index: batch())


def network() -> nn.Sequential:
    """Batch, layer and group norms with weights that differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.GroupNorm(2, 6),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5),
    )
    with torch.no_grad():
        for norm in filter(is_norm, model):
            norm.weight.normal_(1, 0.5)
    return model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 2, 6, 6, generator=generator), torch.arange(12) % 5


def loss_of(model: nn.Module) -> Tensor:
    inputs, labels = batch()
    return functional.cross_entropy(model(inputs), labels)


def with_weight(model: nn.Module) -> dict[str, nn.Module]:
    """As the paper's released code finds them."""
    return {name: module for name, module in model.named_modules() if getattr(module, "weight", None) is not None}


def rounded(weight: Tensor, bits: int) -> Tensor:
    """q(w) with the straight-through gradient, and the scale in the graph."""
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    scaled = weight / step
    return step * (scaled + (scaled.round() - scaled).detach())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Relative to the norm of each tensor: single entries may be sums that cancel."""
    assert found.keys() == wanted.keys()
    for name, each in found.items():
        assert float((each - wanted[name]).norm()) <= tolerance * float(wanted[name].norm()), name


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_penalty_and_gradient(dtype: torch.dtype, tolerance: float, bits: int, granularity: str) -> None:
    model = network().to(dtype)
    twin = copy.deepcopy(model)
    settings = {**QUANTIZED, "granularity": granularity}
    value = OscillationRegularizer(model, bits, 7.0, settings).add_gradient()
    terms = [
        plain_loss(module.weight, bits, 7.0, per_channel=granularity == "channel" and not is_norm(module))
        for module in with_weight(twin).values()
    ]
    assert len(terms) == 7
    sum(terms).backward()
    assert float(value) == pytest.approx(float(torch.stack(terms).sum().detach()), rel=tolerance)
    assert_close(gradients(model), gradients(twin), tolerance)


def test_the_method_does_what_the_regularizer_does() -> None:
    model = network()
    attach(model, norms=True)
    context = Context(target_bit=3, quantizer=complete(run_of("oscillation")).quantizer)
    method = Oscillation(Oscillation.Config(strength=7.0), context)
    method.prepare(model, CALIBRATION)
    value, twin = method.after_backward(Step(0, 1, model)), network()
    assert torch.equal(value, OscillationRegularizer(twin, 3, 7.0, QUANTIZED).add_gradient())  # type: ignore[arg-type]
    assert_close(gradients(model), gradients(twin), 0.0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_training_through_quantized_norms(bits: int, fused: bool) -> None:
    model, plain = network(), network()
    attach(model, norms=True)
    quantizer = complete(run_of("ste")).quantizer
    method = StraightThrough(StraightThrough.Config(), Context(target_bit=bits, quantizer=quantizer, fused=fused))
    method.prepare(model, CALIBRATION)
    loss = loss_of(model)
    loss.backward()
    weights = {f"{name}.weight": rounded(module.weight, bits) for name, module in with_weight(plain).items()}
    inputs, labels = batch()
    wanted = functional.cross_entropy(functional_call(plain, weights, (inputs,)), labels)
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert_close(gradients(model), gradients(plain), 1e-4)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_oscillations_are_counted() -> None:
    model = network()
    tracker = OscillationTracker(model, 3, QUANTIZED, momentum=0.1)
    paths: dict[str, list[Tensor]] = {name: [] for name in with_weight(model)}
    generator = torch.Generator().manual_seed(2)
    for moved in range(20):
        for name, module in with_weight(model).items():
            with torch.no_grad():
                if moved:
                    module.weight += 0.2 * torch.randn(module.weight.shape, generator=generator)
                weight = module.weight.detach()
                paths[name].append((weight / (weight.abs().max() / 3)).round().int().flatten())
        if moved:
            tracker.update()
    found = tracker.metrics()
    counted = {name: [count(path, 0.1) for path in torch.stack(steps, 1).tolist()] for name, steps in paths.items()}
    every = [each for layer in counted.values() for each in layer]
    assert len(every) == sum(module.weight.numel() for module in with_weight(model).values())
    assert found[schema.FLIPS_PER_WEIGHT] == pytest.approx(sum(each.flips for each in every) / len(every))
    assert found[schema.OSCILLATIONS_PER_WEIGHT] == pytest.approx(sum(each.oscillations for each in every) / len(every))
    for name, layer in counted.items():
        frequency = sum(each.frequency for each in layer) / len(layer)
        assert found[schema.layer_frequency(name)] == pytest.approx(frequency, rel=2e-3), name  # fp16
    assert any(each.oscillations for each in counted["1"]), "weights of norms oscillate"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_weights(bits: int) -> None:
    model = network()
    wanted = {name: rounded(module.weight, bits).detach() for name, module in with_weight(model).items()}
    deployed = round_to_nearest(model, bits, quantizer=QUANTIZED)
    assert {name: module.weight.numel() for name, module in with_weight(deployed).items()} == {
        name: weight.numel() for name, weight in wanted.items()
    }
    for name, module in with_weight(deployed).items():
        torch.testing.assert_close(
            module.weight.detach(), wanted[name], rtol=1e-6, atol=1e-7
        )  # an ulp: w/s + (k - w/s)
        assert len(module.weight.unique()) <= 2**bits - 1


# Which modules


def test_resnet18_has_41_modules_with_a_weight() -> None:
    with torch.device("meta"):
        model = build_model(component("model", {"name": "resnet18"}), (3, 32, 32), 10, seed=0)
    found = weight_layers(model, norms=True)
    assert len(found) == 41
    assert sum(map(is_norm, found.values())) == 20
    assert list(found) == list(with_weight(model))
    assert len(weight_layers(model)) == 21


def test_tiny_vit_has_116_modules_with_a_weight() -> None:
    with torch.device("meta"):
        model = timm.create_model("tiny_vit_5m_224", num_classes=200)
    found = weight_layers(model, norms=True)
    assert len(found) == 116
    assert sum(map(is_norm, found.values())) == 48
    assert list(found) == list(with_weight(model))


# Runs


def run_of(*methods: str, model: Any = None, **changes: Any) -> dict[str, Any]:
    """A run of two epochs of two steps on digits."""
    entries = [{**find(name).tiny_config().model_dump(), "name": name} for name in methods]
    return {
        "methods": entries,
        "target_bit": 3,
        "model": model or {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 70, "learning_rate": 1e-2, "precision": "fp32"},
        "quantizer": QUANTIZED,
        "deploy": {"bits": [2, 3], "scale": "keep_step"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
        **changes,
    }


RESNET = {"name": "resnet18", "width": 4}


@pytest.mark.parametrize(
    ("methods", "model"),
    [*(((name,), None) for name in FOLLOWING), (("ste", "freezing"), None), (("lsq", "bn_reestimation"), RESNET)],
)
def test_methods_that_follow_train_and_deploy(methods: tuple[str, ...], model: Any) -> None:
    per_channel = {**QUANTIZED, "granularity": "channel"}  # which norms do not follow: they would not be rounded
    session = build(complete(run_of(*methods, model=model, quantizer=per_channel)))
    names = {name for name, layer in session.model.named_modules() if isinstance(layer, QuantNorm)}
    assert len(names) == (20 if model else 3)
    slots = [session.model.get_submodule(name).weight_quantizer for name in names]
    assert not any(getattr(each, "per_channel", False) for each in slots)
    assert session.audit["quantized"] == len(weight_layers(session.model))
    assert names <= set(session.tracker.codes())
    train(session, lambda metrics: None)
    for bits in (2, 3, "float"):
        deployed = session.evaluator.deployed(session.model, bits)  # type: ignore[arg-type]
        for name in names:
            weight = deployed.get_parameter(f"{name}.weight")
            assert bits == "float" or len(weight.unique()) <= 2**bits, name  # type: ignore[operator]
    assert torch.equal(deployed.get_parameter(f"{name}.weight"), session.model.get_parameter(f"{name}.weight"))


def test_points_with_activations_leave_the_inputs_of_norms_in_float() -> None:
    few = {"calibration_batches": 1}
    session = build(complete(run_of("lsq", target_bit="w3a4", activations=few, deploy={"scale": "keep_step"})))
    deployed = session.evaluator.deployed(session.model, complete(run_of("none", target_bit="w3a4")).target)
    for model in (session.model, deployed):
        norms = [layer for layer in model.modules() if isinstance(layer, QuantNorm)]
        assert len(norms) == 3
        assert not any("input_quantizer" in dict(norm.named_children()) for norm in norms)
        assert sum(isinstance(each, ActivationQuantizer) for each in model.modules()) > 4
    assert all(len(norm.weight.unique()) <= 7 for norm in norms)


@pytest.mark.parametrize("method", ["freezing", pytest.param("lsq", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    wanted = complete(run_of(method))
    run(wanted, tmp_path / "whole")
    left = iter([False] * 3)
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "parts", RunContext(should_stop=partial(next, left, True)))
    run(wanted, tmp_path / "parts")
    one, other = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "parts"))
    assert one["rows"] == other["rows"]
    files = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_re_estimated_statistics_are_those_of_the_rounded_network() -> None:
    model = network()
    attach(model, norms=True)
    context = Context(target_bit=3, quantizer=complete(run_of("none")).quantizer)
    method = BatchNormReestimation(BatchNormReestimation.Config(batches=1), context)
    deployed = copy.deepcopy(model).eval()
    method.deploy(deployed, complete(run_of("none")).target, CALIBRATION)  # type: ignore[arg-type]
    plain = round_to_nearest(network(), 3, quantizer=QUANTIZED)
    for norm in filter(lambda layer: isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d), plain):
        norm.momentum = 1.0
    plain(batch()[0])
    for kept in ("1.running_mean", "1.running_var", "8.running_mean", "8.running_var"):
        torch.testing.assert_close(deployed.get_buffer(kept), plain.get_buffer(kept))
    assert len(deployed.get_parameter("1.weight").unique()) <= 7


# What is refused, and what a run is called


def test_it_names_a_run_only_where_it_is_asked_for() -> None:
    raw = run_of("ste")
    asked = complete(raw)
    default, written = (complete({**raw, "quantizer": each}) for each in ({}, {"norms": "float"}))
    assert default.run_id() == written.run_id() != asked.run_id()
    assert "norms" not in default.identity()["quantizer"]
    assert asked.identity()["quantizer"]["norms"] == "quantized"


def test_every_other_method_is_refused() -> None:
    for name in registry.names("method"):
        if name not in FOLLOWING:
            with pytest.raises(
                UserError, match=rf"^quantizer.norms: 'quantized' .* method '{name}', which .*\(legal: f"
            ):
                complete(run_of(name))
            complete(run_of(name, quantizer={}))
    assert sorted(name for name in registry.names("method") if not find(name).refuses_norms) == FOLLOWING


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["any_precision"]}, "'any_precision', which has norm layers of its own, in float, for each bit-w"),
        ({"methods": ["ste", "kure"]}, "'kure', which acts on the weights of linear and convolution layers alone"),
        ({"deploy": {"scale": "keep_step", "methods": ["rtn", "satnl"]}}, "'satnl', which acts"),
        ({"monitor": {"deploy": "any_precision"}}, "'any_precision', which has"),
        ({"quantizer": {"norms": "int"}}, "quantizer.norms: 'int'.*float.*quantized"),
        ({"quantizer": {"norms": True}}, "quantizer.norms"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        complete(run_of("ste", **changes))


def test_a_model_without_norms_is_refused() -> None:
    for changes in ({"model": {"name": "mlp5", "width": 8}}, {"exclude": ["*norm*"]}):
        with pytest.raises(
            UserError, match=r"^quantizer.norms: 'quantized' has no effect: model '.*' has no norm layer"
        ):
            build(complete(run_of("ste", **changes)))
