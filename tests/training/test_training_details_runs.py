"""The loop's own rules: learning rates, patience, selection, clipping, batches, parameter groups, failures."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_details_common import config, same, without_codes

from harness.core.errors import Stopped, UserError
from harness.records import schema
from harness.records.files import read_json
from harness.records.run_directory import RunDirectory
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import complete
from harness.training.device import choose_device
from harness.training.loop import TrainingError, train
from harness.training.optimizer import make_optimizer
from harness.training.run import RunContext, run
from harness.training.sections import RuntimeConfig, TrainConfig


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers(name: Any, kind: type) -> None:
    optimizer = make_optimizer(TrainConfig(optimizer=name, momentum=0.7), nn.Linear(2, 2), [])
    assert type(optimizer) is kind
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


def test_lsqs_steps_learn_at_their_own_rate_and_do_not_decay() -> None:
    session = build(config([{"name": "lsq", "step_learning_rate": 0.01}], train__weight_decay=0.1))
    groups = {group["lr"]: group for group in session.optimizer.param_groups}
    steps = groups[1e-3 * 0.01]
    assert steps["weight_decay"] == 0
    assert len(steps["params"]) == 5
    assert all(parameter.shape == () for parameter in steps["params"])
    assert groups[1e-3]["weight_decay"] == 0.1


def test_devices() -> None:
    assert choose_device(RuntimeConfig(device="cpu")) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"runtime\.device: 'cuda'"):
            choose_device(RuntimeConfig(device="cuda"))


def test_bf16_trains_and_is_evaluated_in_fp32() -> None:
    session = build(config("lsq", train__precision="bf16"))
    plain = build(config("lsq"))
    assert session.precision == "bf16"
    lines: list[dict[str, Any]] = []
    train(session, lines.append)
    train(plain, lambda metrics: None)
    assert all(math.isfinite(line[schema.TRAIN_LOSS]) for line in lines)
    assert all(parameter.dtype == torch.float32 for parameter in session.model.parameters())
    assert not same(session.model.state_dict(), plain.model.state_dict())


# Whole runs


def test_rows_of_a_record(tmp_path: Path) -> None:
    record = run(config("ste"), tmp_path)
    assert record == read_json(tmp_path / "record.json")
    expected = [(split, bits) for split in ("val", "test") for bits in (2, 3, 8, "float")]
    assert [(row["split"], row["bits"]) for row in record["rows"]] == expected
    for row in record["rows"]:
        assert schema.ROW == ("phase", "split", "deploy", "scale", "bits", "accuracy", "loss", "n")
        assert tuple(row) == (*schema.ROW, *(() if row["bits"] == "float" else ("codes_sha256",)))
        assert (row["phase"], row["deploy"], row["scale"]) == ("final", "rtn", "recalibrate")
        assert 0 <= row["accuracy"] <= 1
        assert row["loss"] > 0
        assert row["n"] == (397 if row["split"] == "test" else 200)
        assert row["accuracy"] * row["n"] == pytest.approx(round(row["accuracy"] * row["n"]), abs=1e-9)
    assert {"git", "numerics_version", "packages", "device", "wall_time_s", "data_digest"} <= set(record["provenance"])
    assert 0 < record["provenance"]["step_ms"] < 1000 * record["provenance"]["wall_time_s"] / 6
    assert record["epochs"] == 2
    assert not (tmp_path / "checkpoint.pt").exists()
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["attempt"], status["failures"]) == ("done", 1, 0)
    assert [line["epoch"] for line in RunDirectory(tmp_path).read_metrics()] == [1, 2]
    assert complete(record["config"]).run_id() == record["run_id"]


def test_a_tuning_run_never_reads_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data.base import Dataset

    read: list[int] = []
    normalized = Dataset.normalized

    def watched(self: Dataset, images: Tensor) -> Tensor:
        read.append(images.untyped_storage().data_ptr())
        assert images.untyped_storage().data_ptr() != self.test.images.untyped_storage().data_ptr()
        return normalized(self, images)

    monkeypatch.setattr(Dataset, "normalized", watched)
    record = run(config("ste", phase="tune"), tmp_path)
    assert read
    assert {(row["phase"], row["split"]) for row in record["rows"]} == {("tune", "val")}
    assert not any(key.startswith("test/") for line in RunDirectory(tmp_path).read_metrics() for key in line)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(config("ste"), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(config("ste"), tmp_path, RunContext(lambda metrics: pytest.fail("trained again"))) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    run(config("ste"), tmp_path)
    record = (tmp_path / "record.json").read_bytes()
    with pytest.raises(UserError, match="directory of its own"):
        run(config("ste", seed=1), tmp_path)
    assert (tmp_path / "record.json").read_bytes() == record
    run(config("ste", runtime__eval_batch_size=7), tmp_path)  # the runtime is no part of a run's identity


def test_zero_epochs_evaluate_the_network_as_it_came(tmp_path: Path) -> None:
    wanted = config("ste", train__epochs=0)
    record = run(wanted, tmp_path)
    session = build(wanted)
    assert (record["epochs"], record["best_epoch"], len(record["rows"])) == (0, 0, 8)
    assert without_codes(record["rows"][4:]) == session.evaluator.rows(session.model, "final", "test")


def test_a_loss_that_is_no_number_fails_the_run(tmp_path: Path) -> None:
    wanted = config("none", train__optimizer="sgd", train__learning_rate=1000.0, train__epochs=30)
    with pytest.raises(TrainingError, match=r"loss .*became nan in epoch"):
        run(wanted, tmp_path)
    status = read_json(tmp_path / "status.json")
    assert status["state"] == "failed"
    assert status["failures"] == 1
    assert re.match(r"TrainingError: the \w+ loss .*became nan in epoch \d", status["reason"])
    assert "Traceback (most recent call last)" in status["traceback"]
    assert "in train" in status["traceback"]
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_checkpoint_starts_over(tmp_path: Path, keep: int, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = config("ste")
    whole = run(wanted, tmp_path / "whole")
    left = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "torn", RunContext(should_stop=lambda: next(left)))
    path = tmp_path / "torn/checkpoint.pt"
    content = path.read_bytes()
    assert len(content) > 5000
    path.write_bytes(content[:keep])
    assert run(wanted, tmp_path / "torn")["rows"] == whole["rows"]
    assert "starting over" in capsys.readouterr().out
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "torn")]
    assert lines[0] == lines[1]


def test_a_checkpoint_of_an_earlier_version_is_said_and_left_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = build(config("ste"))
    checkpoint.save(tmp_path / "checkpoint.pt", session)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["tracker"] = state.pop("trackers")["3"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert not checkpoint.restore(tmp_path / "checkpoint.pt", session)
    assert "written by an earlier version" in capsys.readouterr().out


def test_a_checkpoint_with_other_parameter_groups_is_said_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = build(config("lsq"))
    checkpoint.save(tmp_path / "checkpoint.pt", session)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    first, second = state["optimizer"]["param_groups"]
    state["optimizer"]["param_groups"] = [{**first, "params": first["params"] + second["params"]}]
    state["model"] = {name: value + 1 for name, value in state["model"].items()}
    torch.save(state, tmp_path / "checkpoint.pt")
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    assert not checkpoint.restore(tmp_path / "checkpoint.pt", session)
    assert "written by an earlier version (" in capsys.readouterr().out
    assert same(session.model.state_dict(), before)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    session = build(config("ste"))
    checkpoint.save(tmp_path / "checkpoint.pt", session)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**state, "data": "0123"}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        UserError, match=r"the run began with data of digest 0123, and the data here have \w{16}; go on"
    ):
        checkpoint.restore(tmp_path / "checkpoint.pt", session)
    del state["data"]  # as earlier versions wrote it
    torch.save(state, tmp_path / "checkpoint.pt")
    assert checkpoint.restore(tmp_path / "checkpoint.pt", session)


def test_checkpoints_load_as_plain_data(tmp_path: Path) -> None:
    left = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        run(config("lsq"), tmp_path, RunContext(should_stop=lambda: next(left)))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 1)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "cancelled"
    assert not list(tmp_path.glob(".*")), "nothing is left of what was written aside"
