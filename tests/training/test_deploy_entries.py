"""Entries of `deploy.methods` with settings: rows by their name, what the record holds, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from harness import repeat
from harness.core.errors import UserError
from harness.methods.gptq import Gptq
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.run import run

ENTRIES: list[Any] = ["rtn", "gptq", {"name": "gptq", "as": "gptq_few", "images": 8, "damping": 1.0}]


def config(methods: list[Any], **more: Any) -> RunConfig:
    raw = {
        "methods": "none",
        "watch_bit": 2,
        "model": {"name": "mlp5", "width": 12, "depth": 3},
        "data": {"name": "digits", "train_fraction": 0.2},
        "train": {"epochs": 1, "batch_size": 32},
        "deploy": {"bits": [2], "scale": "recalibrate", "methods": methods},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
        **more,
    }
    return complete(raw)


def test_one_method_with_different_settings_in_one_record(tmp_path: Path) -> None:
    given = config(ENTRIES)
    assert given.run_id() == config(["rtn"]).run_id(), "no part of a run's identity"
    record = run(given, tmp_path / "root/sweep/runs" / given.run_id())
    rows = [row for row in record["rows"] if row["split"] == "test"]
    assert [(row["deploy"], row["bits"]) for row in rows] == [
        ("rtn", 2),
        ("rtn", "float"),
        ("gptq", 2),
        ("gptq_few", 2),
    ]
    assert rows[2]["loss"] != rows[3]["loss"]
    saved = record["config"]["deploy"]["methods"]
    assert saved[:2] == ["rtn", "gptq"]
    assert saved[2] == {"as": "gptq_few", **Gptq.Config(images=8, damping=1.0).model_dump()}
    assert [each["deploy"] for each in record["deployments"]] == ["rtn", "rtn", "gptq", "gptq_few"]
    assert complete(json.loads(json.dumps(record["config"]))) == given
    root = tmp_path / "root"
    (root / "sweep/sweep.json").write_text("{}")
    assert repeat.main([record["run_id"], "--root", str(root), "--dir", str(tmp_path / "again")]) == 0


def test_plain_entries_stay_as_they_are() -> None:
    assert config(["rtn", {"name": "gptq"}, "gptq"]).deploy.methods == ("rtn", "gptq", "gptq")


REFUSED: dict[str, tuple[list[Any], str]] = {
    "method": ([{"name": "gptk", "images": 3}], "unknown deploy method 'gptk'; did you mean 'gptq'"),
    "without a deployment": ([{"name": "lsq", "as": "x"}], "method 'lsq' has no deployment of its own"),
    "setting": (
        [{"name": "gptq", "imags": 3}],
        r"deploy\.methods: method 'gptq': imags: unknown key; did you mean 'im",
    ),
    "value": ([{"name": "gptq", "images": 0}], r"deploy\.methods: method 'gptq': images: 0: Input should be greater"),
    "of rtn": ([{"name": "rtn", "as": "x"}], r"rtn \(round-to-nearest\) has no settings, got as"),
    "form of the name": ([{"name": "gptq", "as": "a b"}], r"as: 'a b' is no name for rows of gptq \(legal: up to 40"),
    "another method's name": ([{"name": "gptq", "as": "erq"}], "as: 'erq' is no name for rows of gptq"),
    "two of one name": (["gptq", {"name": "gptq", "images": 3}], "rows of the name gptq; give them names of their own"),
    "no name": ([{"images": 3}], "unknown deploy method None"),
    "a number": ([3], "unknown deploy method 3"),
}


@pytest.mark.parametrize(("methods", "said"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_refused(methods: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(methods)


def test_a_network_that_a_method_cannot_deploy_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: Gptq, model: nn.Module) -> None:
        raise UserError(f"not with {self.config.images} images")

    monkeypatch.setattr(Gptq, "check", check)
    with pytest.raises(UserError, match="not with 8 images"):
        build(config(ENTRIES[2:]))


def test_notes_of_a_method_are_in_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deploy = Gptq.deploy

    def noting(self: Gptq, model: nn.Module, point: Any, calibration: Any) -> None:
        deploy(self, model, point, calibration)
        self.notes = {"images": self.config.images}

    monkeypatch.setattr(Gptq, "deploy", noting)
    found = run(config(ENTRIES), tmp_path)["deployments"]
    assert [each.get("images") for each in found] == [None, None, 256, 8]
