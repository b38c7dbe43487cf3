"""Rows added to finished runs: those that a run told so from the first has, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness import evaluate
from harness.core.errors import UserError
from harness.methods import bn_reestimation
from harness.training.config import complete
from harness.training.run import run

RAW: dict[str, Any] = {
    "methods": "ste",
    "target_bit": 3,
    "model": {"name": "mlp5", "width": 16},
    "data": {"name": "digits", "train_fraction": 0.2},
    "train": {"epochs": 2, "batch_size": 32},
    "deploy": {"bits": [2, 8], "scale": "keep_range"},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
RESNET = {"name": "resnet18", "width": 4}


def finished(folder: Path, **changes: Any) -> dict[str, Any]:
    return run(complete({**RAW, **changes}), folder)


def rows_of(folder: Path) -> dict[tuple[str, str, Any], dict[str, Any]]:
    rows = json.loads((folder / "record.json").read_text())["rows"]
    keyed = {(row["split"], row["deploy"], row["bits"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


@pytest.mark.parametrize("methods", ["ste", "lsq", "none", ["satnl", "symreg"], ["ste", "freezing"]], ids=str)
def test_the_same_rows_as_a_run_told_so_from_the_first(methods: Any, tmp_path: Path) -> None:
    finished(tmp_path / "later", methods=methods)
    before = rows_of(tmp_path / "later")
    finished(tmp_path / "at once", methods=methods, deploy={"bits": [2, 4, 5, 8], "scale": "keep_range"})
    assert evaluate.main([str(tmp_path / "later"), "--bits", "2,4,5"]) == 0
    after = rows_of(tmp_path / "later")
    assert after == rows_of(tmp_path / "at once")
    assert {key: after[key] for key in before} == before


@pytest.mark.slow
def test_deploy_methods_cross_with_training_methods(tmp_path: Path) -> None:
    record = finished(tmp_path / "later", model=RESNET)
    deploy = {"bits": [2, 8], "scale": "keep_range", "methods": ["rtn", "bn_reestimation"]}
    finished(tmp_path / "at once", model=RESNET, deploy=deploy)
    assert evaluate.main([str(tmp_path / "later"), "--deploy", "bn_reestimation"]) == 0
    assert rows_of(tmp_path / "later") == rows_of(tmp_path / "at once")
    note = json.loads((tmp_path / "later/record.json").read_text())["provenance"]["rows_added"]
    assert [(one["rows"], one["deploy"]) for one in note] == [(8, ["bn_reestimation"])]
    assert note[0]["git"] == record["provenance"]["git"]


def test_epochs_do_not_pay_for_further_deploy_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(bn_reestimation, "reestimate", lambda *arguments: calls.append(arguments))
    deploy = {"bits": [2, 8], "scale": "keep_range", "methods": ["rtn", "bn_reestimation"]}
    finished(tmp_path, model=RESNET, deploy=deploy, train={"epochs": 2, "batch_size": 32})
    assert len(calls) == 4  # only the record's rows: 2, 3, 8 and float, once for validation and test images


def test_a_second_time_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path)
    evaluate.main([str(tmp_path), "--bits", "5"])
    text = (tmp_path / "record.json").read_text()
    evaluate.main([str(tmp_path), "--bits", "5"])
    assert (tmp_path / "record.json").read_text() == text
    assert capsys.readouterr().out.endswith(": 0 rows added\n")


@pytest.mark.parametrize(("model", "told"), [(RAW["model"], True), (RESNET, False)], ids=["MLP", "ResNet"])
def test_a_deploy_method_without_effect_is_said(
    model: dict[str, Any], told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path, model=model)
    assert evaluate.main([str(tmp_path), "--bits", "2", "--deploy", "bn_reestimation"]) == 0
    said = "bn_reestimation changes nothing in this network: its rows are those of rtn"
    assert (said in capsys.readouterr().out) == told


def test_runs_of_a_sweep_and_of_a_root_are_found(tmp_path: Path) -> None:
    for sweep in ("a", "b"):
        finished(tmp_path / sweep / "runs" / "one")
    (tmp_path / "a/runs/two").mkdir()
    assert evaluate.finished_runs(tmp_path) == [tmp_path / "a/runs/one", tmp_path / "b/runs/one"]
    assert evaluate.finished_runs(tmp_path / "a") == [tmp_path / "a/runs/one"]


@pytest.mark.parametrize("what", ["weights", "data", "code"])
def test_what_does_not_fit_its_record_is_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "run", train={"epochs": 8, "batch_size": 32, "learning_rate": 1e-2})
    path = tmp_path / "run/record.json"
    record = json.loads(path.read_text())
    if what == "weights":
        finished(tmp_path / "other", train={"epochs": 0})
        (tmp_path / "other/best.safetensors").rename(tmp_path / "run/best.safetensors")
    elif what == "data":
        record["provenance"]["data_digest"] = "another"
    else:
        record["config"]["train"]["learning_rate"] = 0.5
    path.write_text(json.dumps(record))
    assert evaluate.main([str(tmp_path / "run"), "--bits", "5"]) == 1
    said = {"weights": "nothing was added", "data": "digests differ", "code": "now names another run"}[what]
    assert said in capsys.readouterr().err
    assert json.loads(path.read_text()) == record


def test_a_run_that_somebody_works_on_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path)
    with FileLock(tmp_path / "run.lock"):
        assert evaluate.main([str(tmp_path), "--bits", "5"]) == 1
    assert "a process works on this run" in capsys.readouterr().err


def test_bad_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="unknown deploy method 'bn_reestimate'; did you mean 'bn_reestimation'"):
        evaluate.main([str(tmp_path), "--deploy", "bn_reestimate"])
    with pytest.raises(UserError, match="no finished run there has kept its weights"):
        evaluate.main([str(tmp_path), "--bits", "5"])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        evaluate.main([str(tmp_path / "nowhere"), "--bits", "5"])
    with pytest.raises(SystemExit) as left:
        evaluate.main([str(tmp_path), "--bits", "1,5"])
    assert left.value.code == 2
    assert "is no list of points, as 2,3,w4a8 (legal: 2 to 8 or w2 to w8" in capsys.readouterr().err
