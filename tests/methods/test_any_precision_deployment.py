"""Any-precision networks as they are deployed, what they stack with, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from any_precision_common import (
    RESNET,
    VIT,
    by_hand,
    method,
    of_width,
    session_of,
    switched,
    unlike,
)
from pydantic import ValidationError
from torch import nn

from harness.core.bits import Bits
from harness.core.errors import UserError
from harness.methods.any_precision import AnyPrecision
from harness.methods.bn_reestimation import batch_norms, reestimate
from harness.models import load_checkpoint
from harness.quantization.layers import QuantLayer, attach, weight_layers
from harness.training import checkpoint
from harness.training.loop import train


@pytest.mark.parametrize("settings", [RESNET, VIT], ids=["resnet18", "vit_tiny"])
def test_bit_widths_share_all_but_norms_and_rounding(settings: dict[str, Any]) -> None:
    train_settings = {"epochs": 1, "batch_size": 40, "learning_rate": 1e-2, "precision": "fp32"}
    session = session_of([{"name": "any_precision", "bits": [2, 4]}], settings, train=train_settings)
    plain = session_of(["none"], settings)
    names = {n for n, layer in plain.model.named_modules() if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm)}
    assert set(switched(session.model)) == names
    train(session, lambda metrics: None)
    norms = switched(session.model)
    for norm in norms.values():
        parameters = [of_width(norm, width).weight for width in ("float", 4, 3, 2)]
        assert all(not torch.equal(a, b) for i, a in enumerate(parameters) for b in parameters[:i])  # type: ignore[arg-type]
        if isinstance(norm, nn.BatchNorm2d):
            assert [int(of_width(norm, w).num_batches_tracked) for w in ("float", 4, 3, 2)] == [3] * 4  # type: ignore[arg-type]
    states = {bits: session.evaluator.deployed(session.model, bits).state_dict() for bits in (2, 3, 4, "float")}
    trained = session.model.state_dict()
    for bits, state in states.items():
        assert state.keys() == plain.model.state_dict().keys()
        for key, value in state.items():
            layer = key.rpartition(".")[0]
            if layer in names:
                width, name = f"other_widths.w{bits}.", key.rpartition(".")[2]
                assert torch.equal(value, trained[key if bits == 3 else f"{layer}.{width}{name}"])
            elif key.endswith(".weight") and layer in weight_layers(session.model):
                torch.testing.assert_close(value, by_hand(trained[key], bits))  # type: ignore[arg-type]
            else:
                assert torch.equal(value, trained[key]), "shared"


@pytest.mark.parametrize("scale", ["keep_step", "keep_range", "recalibrate"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_deployment_at_trained_and_other_bit_widths(granularity: str, scale: str) -> None:
    deploy = {"bits": [2, 3, 8], "scale": scale}
    session = session_of(
        [{"name": "any_precision", "bits": [2, 5]}], VIT, deploy=deploy, quantizer={"granularity": granularity}
    )
    unlike(session.model)
    nearest: dict[Bits, Bits] = {2: 2, 3: 3, 4: 5, 5: 5, 6: 5, 7: 5, 8: 5, "float": "float"}
    layers: dict[str, QuantLayer] = attach(session.model)
    for bits, width in nearest.items():
        deployed = session.evaluator.deployed(session.model, bits)
        for name, norm in switched(session.model).items():
            plain = deployed.get_submodule(name)
            assert type(plain) is norm.plain
            assert torch.equal(plain.weight, of_width(norm, width).weight)  # type: ignore[arg-type]
        for name, layer in weight_layers(deployed).items():
            latent = layers[name].weight.detach()
            rows = list(latent) if granularity == "channel" else [latent]
            expected = torch.stack([by_hand(row, bits) for row in rows]).view_as(latent)
            torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_the_nearest_trained_bit_width() -> None:
    own = method(3, bits=(7,))
    assert [own.trained_width(bits) for bits in (2, 3, 4, 5, 6, 8, "float")] == [3, 3, 3, 7, 7, 7, "float"]
    own = method(3, bits=(7,), include_float=False)
    assert own.trained_width("float") == 7


def test_its_weights_load_into_the_float_model(tmp_path: Path) -> None:
    session, plain = session_of(["any_precision"], VIT), session_of(["none"], VIT)
    unlike(session.model)
    checkpoint.save_weights(tmp_path / "best.safetensors", session.model.state_dict())
    load_checkpoint(plain.model, tmp_path / "best.safetensors")
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, session.model.get_parameter(name))


def test_batch_norm_reestimation_fits_the_norms_of_each_bit_width() -> None:
    both = session_of(["any_precision", {"name": "bn_reestimation", "batches": 2}])
    alone = session_of(["any_precision"])
    for bits in (2, 5, "float"):
        again, once = (each.evaluator.deployed(each.model, bits) for each in (both, alone))  # type: ignore[arg-type]
        reestimate(once, batch_norms(once), both.evaluator.calibration, 2)
        assert len(batch_norms(again)) == 20
        for name, value in again.state_dict().items():
            assert torch.equal(value, once.state_dict()[name]), name
    wrong = session_of(["bn_reestimation", "any_precision"])
    with pytest.raises(UserError, match="'any_precision' comes before methods that deploy"):
        wrong.evaluator.deployed(wrong.model, 3)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["any_precision", "ste"], "slot weight_quantizer already holds SwitchedDoReFa"),
        (["ste", "any_precision"], "slot weight_quantizer already holds MaxAbsQuantizer"),
        (["satnl", "any_precision"], "slot weight_transform already holds Saturation"),
        (["any_precision", "dampening"], "'dampening' pulls weights to a grid of steps, which SwitchedDoReFa"),
        (["any_precision", "freezing"], "'freezing' holds integer codes times a step, and SwitchedDoReFa"),
    ],
)
def test_what_it_does_not_stack_with(methods: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        session_of(methods, VIT)


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(UserError, match=r"method 'any_precision' needs normalization layers .*, and model 'mlp5'"):
        session_of(["any_precision"], {"name": "mlp5"})


def test_penalties_of_others_see_v() -> None:
    session, lines = session_of(["any_precision", "kure"], VIT), []
    train(session, lines.append)
    layers = attach(session.model).values()
    v = [layer.weight_transform(layer.weight).detach().flatten() for layer in layers]
    kurtosis = [float(((x - x.mean()) / x.std()).pow(4).mean()) for x in v]
    assert lines[-1]["kure/kurtosis"] == pytest.approx(sum(kurtosis) / len(kurtosis), rel=0.02)


@pytest.mark.parametrize("bits", [[2, 2], [1, 4], [9], [True]])
def test_bits_that_are_none_are_refused(bits: list[Any]) -> None:
    with pytest.raises(ValidationError):
        AnyPrecision.Config(bits=bits)
    assert AnyPrecision.Config(bits=(8, 2)) == AnyPrecision.Config(bits=(2, 8)), "one configuration, one run"


def test_elsewhere_it_deploys_nothing() -> None:
    """Named in `deploy.methods` of a run that did not train with it."""
    deploy = {"bits": [2], "scale": "recalibrate", "methods": ["rtn", "any_precision"]}
    session = session_of(["none"], VIT, deploy=deploy, target_bit=None, watch_bit=3)
    rows = session.evaluator.rows(session.model, "final", "val")
    by_deploy = {name: [row["loss"] for row in rows if row["deploy"] == name] for name in ("rtn", "any_precision")}
    assert by_deploy["rtn"] == by_deploy["any_precision"]
