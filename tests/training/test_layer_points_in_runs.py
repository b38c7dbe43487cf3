"""Points by layer in a run: what is rounded, rows, metrics, what is refused, and methods that choose them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_details_common import Spy, config

from harness import evaluate, repeat
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints, point_of
from harness.methods.base import Calibration
from harness.quantization.layers import weight_layers
from harness.quantization.observing import input_sites
from harness.records import schema
from harness.tasks.classification import ACCURACY
from harness.training.build import build
from harness.training.run import run

HEAD8 = {"name": "head8", "layers": {"*": 4, "layer5": "w8", "layer1*": "float"}}
BARE = {"layer2": 2, "*": 3}


def with_points(*points: Any, **changes: Any) -> Any:
    return config(changes.pop("methods", "ste"), deploy__bits=[2, *points], **changes)


def codes(weight: Tensor) -> int:
    return len(weight.unique())


def test_each_layer_has_its_point() -> None:
    """`*` counts last, though it is written first."""
    session = build(with_points(HEAD8))
    trained, layers = weight_layers(session.model), weight_layers(session.evaluator.deployed(session.model, HEAD8))
    whole = {bits: weight_layers(session.evaluator.deployed(session.model, bits)) for bits in (4, 8)}
    for name, bits in {"layer2": 4, "layer3": 4, "layer4": 4, "layer5": 8}.items():
        assert torch.equal(layers[name].weight, whole[bits][name].weight), name
        assert not torch.equal(layers[name].weight, trained[name].weight), name
    assert torch.equal(layers["layer1"].weight, trained["layer1"].weight)


def test_what_no_glob_matches_keeps_the_bits_that_it_was_trained_for() -> None:
    session = build(with_points({"layer5": 8}))
    layers = weight_layers(session.evaluator.deployed(session.model, {"layer5": 8}))
    at_target = weight_layers(session.evaluator.deployed(session.model, 3))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        assert torch.equal(layers[name].weight, at_target[name].weight)
    assert codes(layers["layer5"].weight) > codes(at_target["layer5"].weight)


def test_rows_metrics_and_the_record(tmp_path: Path) -> None:
    given = with_points(HEAD8, BARE, train__epochs=1)
    assert given.run_id() == with_points(train__epochs=1).run_id(), "points are no part of a run's identity"
    record = run(given, tmp_path)
    head8, bare = {"*": 4, "layer5": 8, "layer1*": "float"}, {"layer2": 2, "*": 3}
    written = [{"name": "head8", "layers": head8}, {"name": "layer2_w2-w3", "layers": bare}]
    assert record["config"]["deploy"]["bits"] == [2, *written]
    rows = [row for row in record["rows"] if row["split"] == "val"]
    assert [row["bits"] for row in rows] == [2, 3, "head8", "layer2_w2-w3", "float"]
    assert [row.get("layers") for row in rows] == [None, None, head8, bare, None]
    epoch = json.loads((tmp_path / "metrics.jsonl").read_text())
    metrics = schema.as_metrics(rows, ACCURACY)
    assert {"val/acc_head8", "val/loss_layer2_w2-w3"} <= set(metrics) & set(epoch)
    assert all(metrics[name] == epoch[name] for name in metrics)
    # Further rows, and the whole again
    assert evaluate.main([str(tmp_path), "--bits", '5, {layer1: w4, "*": float}, {name: h8, layers: {layer5: 8}}']) == 0
    added = json.loads((tmp_path / "record.json").read_text())["rows"][len(record["rows"]) :]
    assert {row["bits"] for row in added} == {5, "layer1_w4-float", "h8"}
    root = tmp_path / "root/sweep/runs"
    root.mkdir(parents=True)
    (root.parent / "sweep.json").write_text("{}")
    (root / record["run_id"]).symlink_to(tmp_path)
    assert repeat.main([record["run_id"], "--root", str(tmp_path / "root"), "--dir", str(tmp_path / "again")]) == 0
    assert evaluate.main([str(tmp_path), "--bits", "{name: head8, layers: {'*': 2}}"]) == 1


REFUSED: dict[str, tuple[list[Any], str]] = {
    "misspelt layer": ([{"*": 4, "layr5": 8}], r"deploy\.bits: w4-layr5_w8: .*'layr5'; did you mean 'layer5'\?"),
    "glob of nothing": ([{"*": 4, "head*": 8}], r"unknown layer in bits 'head\*' \(legal: layer1, layer2"),
    "glob without effect": ([{"layer*": 4, "layer?": 8}], r"'layer\?' has no effect: names or earlier globs decide"),
}


@pytest.mark.parametrize(("points", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_the_network_is_refused(points: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(with_points(*points))


@pytest.mark.parametrize("methods", ["none", "oscillation"])
def test_layers_without_a_point_and_a_quantizer_are_refused(methods: str) -> None:
    """They would silently stay float."""
    target = {"target_bit": None, "watch_bit": 2} if methods == "none" else {}
    with pytest.raises(UserError, match=r"w8: no point for layer1, layer2, layer3, layer4, which have no .*'\*': 8"):
        build(with_points({"layer5": 8}, methods=methods, **target))
    build(with_points({"layer5": 8, "*": "float"}, methods=methods, **target))


def test_in_a_configuration() -> None:
    for points, said in [
        ([HEAD8, {"name": "head8", "layers": {"*": 2}}], "names head8 more than once"),
        ([{"name": "a.b", "layers": {"*": 2}}, {"name": "a_b", "layers": {"*": 3}}], "names a.b, a_b more than once"),
        ([{"*": 4, "layer5": "w4kv4"}], "w4-layer5_w4kv4: model .mlp5. keeps no cache"),
        ([{"*": 4, "layer5": 9}], r"^deploy\.bits\.1: .*layers: layer5: 9: no bit-width"),
    ]:
        with pytest.raises(UserError, match=said):
            with_points(*points)
    with pytest.raises(UserError, match="target_bit"):
        config(target_bit={"*": 4})
    norms = {"model": {"name": "resnet18", "width": 2}}
    with pytest.raises(UserError, match="head8: 'any_precision' deploys a network at one point for all its layers"):
        with_points(HEAD8, methods="any_precision", **norms)


# Methods that choose points for layers


class Allocating(Spy):
    """At 4 bits: 8 for the last layer, the trained bits for the first, 2 for the others."""

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> Mapping[str, Any] | None:
        return {"layer5": 8, "layer[234]": "w2"} if point == point_of(4) else None


class Noting(Spy):
    """Notes the points that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[AnyPoint] = []
        self.inputs: list[dict[str, int | None]] = []

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        self.got.append(point)
        self.inputs.append(input_bits(model))


def test_a_method_may_choose_points_for_layers() -> None:
    session, last = build(config(deploy__bits=[4])), Noting()
    evaluator = replace(session.evaluator, methods=[*session.methods, Allocating(), last])
    layers = weight_layers(evaluator.deployed(session.model, 4))
    chosen = LayerPoints("", (("layer5", point_of(8)), ("layer[234]", point_of(2))))  # type: ignore[arg-type]
    assert last.got[0].parts == chosen.parts
    for name, bits in {"layer1": 3, "layer2": 2, "layer3": 2, "layer4": 2, "layer5": 8}.items():
        expected = weight_layers(session.evaluator.deployed(session.model, bits))[name].weight
        assert torch.equal(layers[name].weight, expected), name
        assert codes(expected) < 2**bits
    rows = evaluator.rows(session.model, "tune", "val")
    assert [(row["bits"], row.get("allocated")) for row in rows] == [
        (3, None),
        (4, {"layer5": 8, "layer[234]": 2}),
        ("float", None),
    ]
    assert all("layers" not in row for row in rows)


def test_what_a_method_chooses_wrongly_is_named() -> None:
    class Wrong(Spy):
        def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> Mapping[str, Any]:
            return {"layer6": 8}

    session = build(config())
    evaluator = replace(session.evaluator, methods=[Wrong()])
    with pytest.raises(UserError, match="unknown layer in bits 'layer6'; did you mean 'layer"):
        evaluator.deployed(session.model, 4)


# Activations


def input_bits(model: nn.Module) -> dict[str, int | None]:
    """By layer: the bits of its input's quantizer."""
    return {name.rpartition(".")[0]: getattr(site.held, "bits", None) for name, site in input_sites(model).items()}


MIXED = {"*": "w4a4", "layer1": "w8a8", "layer5": 4, "layer2": "float"}


@pytest.mark.parametrize("target", [3, "w3a3"])
def test_activations_are_those_of_the_layers_point(target: Any) -> None:
    """Also where the network was trained with activations at others."""
    session = build(with_points(MIXED, target_bit=target, methods="lsq"))
    deployed = session.evaluator.deployed(session.model, MIXED)
    assert input_bits(deployed) == {"layer1": 8, "layer2": None, "layer3": 4, "layer4": 4, "layer5": None}
    weights, whole = weight_layers(deployed), weight_layers(session.evaluator.deployed(session.model, 4))
    assert torch.equal(weights["layer3"].weight, whole["layer3"].weight)
    (row,) = session.evaluator.rows(session.model, "tune", "val", [("rtn", point_of(MIXED))])
    assert row["layers"] == {"*": "w4a4", "layer1": "w8a8", "layer5": 4, "layer2": "float"}
    assert "activations" not in row


def test_layers_that_none_matches_keep_their_activations() -> None:
    session = build(with_points({"layer5": 8, "layer4": "w8a8"}, target_bit="w3a3", methods="lsq"))
    trained = input_bits(session.model)
    deployed = session.evaluator.deployed(session.model, {"layer5": 8, "layer4": "w8a8"})
    assert input_bits(deployed) == trained | {"layer5": None, "layer4": 8}
    assert list(trained.values()) == [8, 3, 3, 3, 8], "first and last at 8"


def test_methods_deploy_with_float_inputs_where_the_point_has_them_in_float() -> None:
    """A method that runs the network then measures what is deployed; other quantizers are still those of training."""
    session, method = build(with_points(MIXED, target_bit="w3a3", methods="lsq")), Noting()
    evaluator = replace(session.evaluator, methods=[*session.methods, method])
    for point in (MIXED, 4, {"layer2": 8}):
        evaluator.deployed(session.model, point)
    trained = {"layer1": 8, "layer2": 3, "layer3": 3, "layer4": 3, "layer5": 8}
    assert method.inputs == [
        trained | {"layer2": None, "layer5": None},
        dict.fromkeys(trained),
        trained | {"layer2": None},
    ]


def test_points_with_activations_wait_for_the_record() -> None:
    given = with_points(MIXED, HEAD8)
    assert [str(point) for point in given.epoch_points] == ["2", "3", "head8", "float"]
