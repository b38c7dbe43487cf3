"""Points with keys and values in runs: refused where nothing caches them, hashed only where they count."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.bits import BitWidths
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.quantization.key_value_points import key_value_slots
from harness.records import schema
from harness.run import main as run_main
from harness.training.config import RunConfig, complete
from harness.training.trial_build import session_without_data


def config(**more: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "methods": "none",
        "watch_bit": 4,
        "model": {"name": "mlp5", "width": 8, "depth": 2},
        "data": {"name": "digits"},
        "deploy": {"bits": [4], "scale": "recalibrate"},
    }
    return complete(raw | more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"deploy": {"bits": ["w4kv4"], "scale": "recalibrate"}}, "deploy.bits: w4kv4: model 'mlp5' keeps no cache"),
        ({"deploy": {"bits": [{"*": "w4a8kv4"}], "scale": "recalibrate"}}, "deploy.bits: .*: model 'mlp5' keeps no"),
        ({"methods": "ste", "watch_bit": None, "target_bit": "w4kv4"}, "target_bit: w4kv4: model 'mlp5' keeps no"),
        ({"kv": {"group": 0}}, "kv.group: 0"),
        ({"kv": {"gruop": 8}}, "kv.gruop.*group"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(**more)


def test_a_run_by_hand_ends_with_2(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "methods: none\nwatch_bit: 4\nmodel: {name: mlp5}\ndata: {name: digits}\n"
        "deploy: {bits: [w4kv4], scale: recalibrate}\n"
    )
    monkeypatch.setattr(sys, "argv", ["run", str(file), "--dir", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as end:
        run_command(run_main)
    assert end.value.code == 2
    assert "keeps no cache of keys and values" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_group_is_hashed_only_where_it_differs() -> None:
    assert config().run_id() == config(kv={"group": 32}).run_id() != config(kv={"group": 16}).run_id()


def test_points_say_whether_they_have_them() -> None:
    assert BitWidths(4, kv=4).has_kv
    assert not BitWidths(4, 8).has_kv
    assert LayerPoints.of({"*": 4, "a": "w4kv4"}).has_kv
    assert not LayerPoints.of({"*": 4}).has_kv


def test_rows_of_a_decoder_say_their_bits() -> None:
    quick = {"name": "wkvquant", "as": "quick", "sequences": 2, "batch": 2, "iterations": 1}
    found = config(
        model={"name": "llama", "layers": 2, "width": 16, "heads": 2},
        data={"name": "python_stdlib"},
        deploy={"bits": [4, "w4kv2", "w4a8kv2"], "scale": "recalibrate", "methods": ["rtn", "kivi", quick]},
        kv={"group": 4},
    )
    session = session_without_data(found, (12,), 11)
    deployments = session.evaluator.deployments(session.model)
    rows = session.evaluator.rows_of(deployments, "final", "val")
    at = {(row["deploy"], str(schema.point(row))): row for row in rows}
    assert {deploy for deploy, point in at if point == "w4kv2"} == {"rtn", "kivi", "quick"}
    assert {deploy for deploy, point in at if point == "4"} == {"rtn"}
    assert all(("kv" in row) == ("kv" in point) for (_, point), row in at.items())
    assert at["rtn", "w4kv2"]["kv"] == 2
    slots = next(iter(key_value_slots(session.evaluator.deployed(session.model, "w4kv2")).values()))
    assert repr(slots.key_quantizer) == "TokenGroupQuantizer(bits=2, group=4, recent=0)"
    assert len({row["score"] for row in rows if row["bits"] == 4}) == len(at) - 1, "all differ"
    assert [each.cost["kv"] for each in deployments if each.point.has_kv] == [2] * 6
