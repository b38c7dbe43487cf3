"""Points with keys and values in runs: refused where nothing caches them, hashed only where they count."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.bits import BitWidths
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.run import main as run_main
from harness.training.config import RunConfig, complete


def config(**more: Any) -> RunConfig:
    raw = {
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
