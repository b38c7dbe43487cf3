"""Points with activations in runs: observed once, on the same batches for all methods; rows that are added later."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import evaluate, repeat
from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.quantization import StaticQuantizer, observe
from harness.quantization.observing import input_sites
from harness.records import schema
from harness.training import deployer
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.finite import TrainingError
from harness.training.loop import validate
from harness.training.pretrain import parent_of
from harness.training.run import run

RAW: dict[str, Any] = {
    "methods": "none",
    "watch_bit": 2,
    "model": {"name": "mlp5", "width": 16},
    "data": {"name": "digits", "train_fraction": 0.1, "augment": {"crop_padding": 1, "flip": True}},
    "train": {"epochs": 1, "batch_size": 32, "precision": "fp32", "learning_rate": 1e-2},
    "deploy": {"bits": [4, "w4a4", "w8a8", "w4a8", "w8a4"], "scale": "recalibrate"},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
#: Batches of the training images; none is taken twice.
ALL = 4
RESNET = {"name": "resnet18", "width": 4}
VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}


def config(**changes: Any) -> RunConfig:
    raw = {**RAW, **changes}
    return complete({**raw, "watch_bit": None} if raw.get("target_bit") else raw)


def rows_of(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    rows = json.loads((folder / "record.json").read_text())["rows"]
    keyed = {(row["split"], row["deploy"], schema.point(row)): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def observations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of batches of each observation by the evaluator, as they come."""
    counts: list[int] = []
    original = deployer.observed_inputs

    def counted(model: Any, calibration: Any, context: Any) -> Any:
        counts.append(len(list(calibration.inputs(context.activations.calibration_batches))))
        return original(model, calibration, context)

    monkeypatch.setattr(deployer, "observed_inputs", counted)
    return counts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [ALL]),
        ({"activations": {"calibration_batches": 3}}, [3]),
        ({"activations": {"calibration_batches": 99}}, [ALL]),
        ({"activations": {"granularity": "token", "range": "max"}}, []),
        ({"methods": "lsq", "target_bit": "w4a4", "deploy": {"bits": [4, "w3a4"], "scale": "recalibrate"}}, []),
        ({"methods": "lsq", "target_bit": "w4a4", "deploy": {"bits": ["w4a8", "w4a3"], "scale": "recalibrate"}}, [ALL]),
        ({"methods": "lsq", "target_bit": "w4a4", "deploy": {"bits": ["w4a8", "w4a3"], "scale": "keep_range"}}, []),
        ({"deploy": {"bits": [2, 3], "scale": "recalibrate"}}, []),
    ],
)
def test_a_model_is_observed_once_for_all_points_or_not_at_all(
    changes: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = build(config(**changes))
    counts = observations(monkeypatch)
    first = session.evaluator.rows(session.model, "final", "val")
    assert counts == expected
    assert session.evaluator.rows(session.model, "final", "val") == first, "deterministic"


def test_after_a_deploy_method_that_changes_activations_they_are_observed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy = {"bits": [4, "w4a4", "w8a8"], "scale": "recalibrate", "methods": ["rtn", "bn_reestimation"]}
    session = build(config(model=RESNET, deploy=deploy, activations={"calibration_batches": 1}))
    counts = observations(monkeypatch)
    session.evaluator.rows(session.model, "final", "val")
    assert counts == [1, 1, 1], "once for round-to-nearest, once for each of the two points"
    deployed = session.evaluator.deployed(session.model, "w8a8", "bn_reestimation")
    again = session.evaluator.deployed(session.model, 8, "bn_reestimation")
    seen = observe(again, session.evaluator.calibration.inputs(1))
    for name, site in input_sites(deployed).items():
        assert isinstance(site.held, StaticQuantizer)
        assert torch.equal(site.held.high, StaticQuantizer(8).fit(seen[name]).high), "of the changed network"


def test_all_methods_are_calibrated_on_the_same_images_without_augmentation() -> None:
    sessions = [build(config(methods=method, target_bit=4)) for method in ("ste", "oscillation")]
    batches = [list(session.evaluator.calibration.inputs(4)) for session in sessions]
    assert [len(each) for each in batches[0]] == [32, 32, 32, 24]
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    plain = sessions[0].dataset.normalized(sessions[0].dataset.train.images)
    rows = {tuple(row) for row in plain.flatten(1).tolist()}
    assert all(tuple(row) in rows for row in batches[0][0].flatten(1).tolist())


def count_levels(counts: dict[str, int], name: str, module: Any, inputs: Any, output: Tensor) -> None:
    counts[name] = len(output.unique())


def test_the_source_stays_as_it_is_and_inputs_are_on_their_grids() -> None:
    session = build(config(model=VIT))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    names = [name for name, _ in session.model.named_modules()]
    images: Tensor = session.dataset.normalized(session.dataset.val.images[:40])
    for point in ("w2a2", "w4a3", "w8a8"):
        deployed = session.evaluator.deployed(session.model, point)
        sites = input_sites(deployed)
        counts: dict[str, int] = {}
        for name, site in sites.items():
            site.held.register_forward_hook(partial(count_levels, counts, name))
        with torch.no_grad():
            deployed(images)
        assert set(counts) == set(sites)
        bits = BitWidths.of(point).activations
        assert all(counts[name] <= 2 ** sites[name].held.bits for name in sites)  # type: ignore[operator]
        assert {site.held.bits for site in sites.values()} == {bits, 8}
    assert [name for name, _ in session.model.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"methods": "lsq", "target_bit": "w4a4", "deploy": {"bits": [4], "scale": "keep_step"}},
        {"model": VIT, "activations": {"granularity": "token", "range": "max", "first_last": "same"}},
    ],
    ids=["float", "lsq", "token"],
)
def test_rows_that_are_added_later_are_those_of_a_run_told_so_from_the_first(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy = changes.get("deploy", RAW["deploy"])
    run(config(**{**changes, "deploy": {**deploy, "bits": [3]}}), tmp_path / "t/runs/later")
    at_once = config(**{**changes, "deploy": {**deploy, "bits": [3, "w4a8", "w3a4"]}})
    once = tmp_path / "s/runs" / at_once.run_id()
    run(at_once, once)
    assert evaluate.main([str(tmp_path / "t/runs/later"), "--bits", "w4a8,W3A4"]) == 0
    assert rows_of(tmp_path / "t/runs/later") == rows_of(once)
    (tmp_path / "s/sweep.json").write_text("{}")
    capsys.readouterr()
    assert repeat.main([at_once.run_id(), "--root", str(tmp_path), "--dir", str(tmp_path / "again")]) == 0
    assert "rows are the same" in capsys.readouterr().out


def test_the_float_network_of_fine_tuning_is_evaluated_there_too(tmp_path: Path) -> None:
    wanted = config(methods="lsq", target_bit="w4a4", pretrain={"epochs": 1, "batch_size": 32})
    parent = parent_of(wanted)
    assert parent.run_id() == parent_of(config(methods="ste", target_bit=4, pretrain=wanted.pretrain)).run_id()
    run(parent, tmp_path / "parent")
    assert evaluate.main([str(tmp_path / "parent"), "--bits", "w5a5"]) == 0
    assert ("val", "rtn", BitWidths(5, 5)) in rows_of(tmp_path / "parent")


def test_activations_that_are_no_number_fail_a_run_as_training_that_diverged() -> None:
    session = build(config(target_bit="w4a4", methods="ste"))
    with torch.no_grad():
        session.model.get_parameter("layer1.weight").fill_(1e38)
        session.model.get_parameter("layer2.weight")[0] = torch.tensor([1.0, -1.0] * 8)
    with pytest.raises(TrainingError, match=r"in epoch 0: calibration: what comes to layer3\.input_quantizer in batch"):
        validate(session)


ONE = {"exclude": ["layer1", "layer2", "layer3", "layer4"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (ONE, "activations.first_last: 8: 'layer5' is the only quantized layer"),
        ({**ONE, "methods": "lsq", "target_bit": "w3a3", "deploy": {"bits": [3], "scale": "keep_step"}}, "first_last"),
        ({**ONE, "activations": {"first_last": "float"}}, "activations.first_last: float"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config(**changes))
    build(config(**{**changes, "activations": {"first_last": "same"}}))
    weights_only = {"target_bit": None, "methods": "none", "deploy": {"bits": [3], "scale": "recalibrate"}}
    build(config(**{**changes, **weights_only}))
