"""What every method must do, whatever it is. A new file in harness/methods/ is picked up by itself."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_common import fitting, groups, pairs, point_of_layer

from harness.core import registry
from harness.core.bits import BitWidths
from harness.core.errors import Stopped
from harness.methods import find
from harness.quantization.audit import Audit
from harness.quantization.layers import QuantLayer, weight_layers
from harness.quantization.slots import Unfilled
from harness.records.schema import FREQUENCY, TRAIN_LOSS
from harness.training import build as building
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train
from harness.training.run import RunContext, run
from harness.training.session import Session

METHODS = registry.names("method")
WITH_STRENGTH = [name for name in METHODS if "strength" in find(name).Config.model_fields]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 16},
    # Stochastic depth draws from torch's global generator, whose state a checkpoint must carry.
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2, "drop_path": 0.3},
}
STEPS_AN_EPOCH = 3


def config(method: str, device: str = "cpu", model: str | None = None, **settings: Any) -> RunConfig:
    """Two epochs of three steps on digits; model: the first that the method fits, unless named."""
    entry = {**find(method).tiny_config().model_dump(), "name": method, **settings}
    return complete(
        {
            "methods": [entry],
            "target_bit": 3,
            "model": MODELS[model or fitting(method, MODELS)[0]],
            "data": {"name": "digits", "train_fraction": 0.1, "augment": {"crop_padding": 1, "flip": True}},
            "train": {"epochs": 2, "batch_size": 40, "learning_rate": 1e-2, "clip_norm": 5.0, "precision": "fp32"},
            "deploy": {"bits": [2, 3, 8], "scale": "recalibrate"},
            "runtime": {"device": device, "deterministic": device == "cuda", "wandb": "off", "threads": 1},
        }
    )


def trained(run_config: RunConfig) -> Session:
    """A session after all its steps."""
    session = build(run_config)
    train(session, lambda metrics: None)
    return session


def state(session: Session) -> dict[str, Any]:
    """Everything that a step may change, copied."""
    return deepcopy(
        {
            "model": session.model.state_dict(),
            "training": [module.training for module in session.model.modules()],
            "gradients": [p.grad for p in session.model.parameters()],
            "optimizer": session.optimizer.state_dict(),
            "tracker": session.tracker.state_dict(),
            "methods": [method.state_dict() for method in session.methods],
            "rng": torch.get_rng_state(),
        }
    )


def assert_same(left: Any, right: Any, place: str = "state") -> None:
    """Equal to the last bit, tensors and containers alike; raises where they differ."""
    assert type(left) is type(right), place
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), place
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_same(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{place}[{index}]")
    else:
        assert left == right, place


def result(folder: Path) -> dict[str, Any]:
    """What a run left behind that must not depend on interruptions."""
    record = json.loads((folder / "record.json").read_text())
    return {
        "rows": record["rows"],
        "best_epoch": record["best_epoch"],
        "metrics": (folder / "metrics.jsonl").read_text(),
        "best": (folder / "best.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_to_finite_values(method: str, device: str) -> None:
    lines: list[dict[str, Any]] = []
    session = build(config(method, device))
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    train(session, lines.append)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 < line[TRAIN_LOSS] < 10 for line in lines)
    assert all(0 <= line[FREQUENCY] <= 1 for line in lines)
    for name, parameter in session.model.named_parameters():
        assert parameter.isfinite().all(), name
    moved = [name for name, p in session.model.named_parameters() if not torch.equal(p, before[name])]
    assert moved


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), pairs(METHODS, MODELS))
def test_resumed_equals_uninterrupted_bit_for_bit(method: str, model: str, device: str, tmp_path: Path) -> None:
    wanted = config(method, device, model)
    run(wanted, tmp_path / "whole")
    for allowed in (2, 1, 2):  # steps until each interruption: within an epoch, at its end, within the next
        left = iter([False] * allowed)
        torch.rand(7)  # other code may draw random numbers in between
        with pytest.raises(Stopped):
            run(wanted, tmp_path / "parts", RunContext(should_stop=partial(next, left, True)))
        assert json.loads((tmp_path / "parts/status.json").read_text())["state"] == "cancelled"
    run(wanted, tmp_path / "parts")
    assert json.loads((tmp_path / "parts/status.json").read_text())["attempt"] == 4
    assert result(tmp_path / "parts") == result(tmp_path / "whole")


@pytest.mark.parametrize(("method", "model"), pairs(METHODS, MODELS))
def test_the_probe_of_the_network_changes_no_number(
    method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = config(method, model=model).model_dump(mode="json")
    short = complete({**raw, "train": {**raw["train"], "epochs": 1}, "deploy": {**raw["deploy"], "bits": [3]}})
    run(short, tmp_path / "with")
    monkeypatch.setattr(building, "_audit", lambda *args: Audit({}))
    run(short, tmp_path / "without")
    assert result(tmp_path / "with") == result(tmp_path / "without")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), pairs(WITH_STRENGTH, MODELS))
def test_strength_zero_equals_the_plain_run_bit_for_bit(method: str, model: str, device: str) -> None:
    plain, nothing = trained(config("none", device, model)), trained(config(method, device, model, strength=0.0))
    assert_same(nothing.model.state_dict(), plain.model.state_dict())
    some = trained(config(method, device, model))
    assert any(not torch.equal(a, b) for a, b in zip(some.model.parameters(), plain.model.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_changes_nothing(method: str) -> None:
    session = trained(config(method))
    session.model.train()
    before = state(session)
    session.evaluator.rows(session.model, "final", "val")
    session.evaluator.rows(session.model, "final", "test")
    assert_same(state(session), before)


@pytest.mark.parametrize("method", METHODS)
def test_deployment_leaves_the_source_untouched_and_is_on_a_grid(method: str) -> None:
    session = trained(config(method))
    before, sources = state(session), weight_layers(session.model)
    for bits in range(2, 9):
        (found,) = session.evaluator.deployments(session.model, [("rtn", BitWidths(bits))])
        for name, layer in weight_layers(found.model).items():
            own = point_of_layer(found, name).weights
            assert own is not None
            own_steps = groups(sources[name], layer.weight, own)
            assert max(len(group.unique()) for group in own_steps) <= 2**own, (name, bits)
    floating = session.evaluator.deployed(session.model, "float")
    assert_same(state(session), before)
    for name, layer in weight_layers(floating).items():
        latent = sources[name].eval().weight_transform(sources[name].weight)  # type: ignore[operator]
        assert torch.equal(layer.weight, latent), name


@pytest.mark.parametrize("method", METHODS)
def test_its_configuration_goes_through_json(method: str) -> None:
    once = config(method)
    again = complete(json.loads(json.dumps(once.model_dump(mode="json"))))
    assert again == once
    assert again.run_id() == once.run_id()


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_from_the_same_weights_and_batches_as_float_training(method: str) -> None:
    wanted = config(method)
    session, plain = build(wanted), build(config("none", model=str(wanted.model["name"])))
    own = dict(session.model.named_parameters())
    transforms = {
        f"{name}.weight": layer.weight_transform
        for name, layer in session.model.named_modules()
        if isinstance(layer, QuantLayer) and not isinstance(layer.weight_transform, Unfilled)
    }
    for name, parameter in plain.model.named_parameters():
        if name in transforms and not torch.equal(own[name], parameter):
            # What the layer computes with; there and back in fp32 costs a few last bits.
            torch.testing.assert_close(transforms[name](own[name]), parameter, rtol=1e-5, atol=1e-7)
        elif name in own:
            assert torch.equal(own[name], parameter), name
    if not set(dict(plain.model.named_parameters())) <= set(own):  # layers were replaced: the function tells
        images = session.dataset.normalized(session.dataset.val.images[:64])
        floating = session.evaluator.deployed(session.model, "float")
        torch.testing.assert_close(floating(images), plain.model.eval()(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(session.dataset.train.images, plain.dataset.train.images)
    assert torch.equal(session.dataset.val.labels, plain.dataset.val.labels)


@pytest.mark.parametrize("method", METHODS)
def test_its_file_says_where_it_comes_from_and_what_its_settings_are(method: str) -> None:
    module, found = registry.load("method", method), find(method)
    assert module.__doc__
    assert found.kind
    assert found.acts_on
    for name, field in found.Config.model_fields.items():
        assert name == "name" or field.description, f"{method}.{name} has no description"
