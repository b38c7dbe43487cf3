"""What is deployed for a record: each method and point once, only where the method serves, with its time and memory."""

import json
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import evaluate
from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.methods.gptq import Gptq
from harness.repeat import differences
from harness.training import effort as measuring
from harness.training.build import build
from harness.training.config import complete
from harness.training.effort import Effort, effort, process_peak_bytes
from harness.training.evaluator import Evaluator
from harness.training.run import run

RAW: dict[str, Any] = {
    "methods": "none",
    "target_bit": 3,
    "model": {"name": "mlp5", "width": 12, "depth": 3},
    "data": {"name": "digits", "train_fraction": 0.2},
    "train": {"epochs": 1, "batch_size": 32},
    "deploy": {"bits": [2, "w4a8"], "scale": "recalibrate", "methods": ["rtn", "gptq"]},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
POINTS = [(2, None), (3, None), (4, 8), ("float", None)]
CPU = torch.device("cpu")


def places(entries: list[dict[str, Any]]) -> list[Any]:
    return [(each["deploy"], each["bits"], each.get("activations")) for each in entries]


def test_each_method_and_point_once_and_no_copy_of_rounding_to_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy, calls = Gptq.deploy, []
    monkeypatch.setattr(Gptq, "deploy", lambda *arguments: (calls.append(arguments[2]), deploy(*arguments))[1])
    record = run(complete(RAW), tmp_path)
    expected = [*(("rtn", *point) for point in POINTS), *(("gptq", *point) for point in POINTS[:3])]
    assert calls == [BitWidths(2), BitWidths(3), BitWidths(4, 8)], "once, for validation and test images"
    for split in ("val", "test"):
        assert places([row for row in record["rows"] if row["split"] == split]) == expected
    assert places(record["deployments"]) == expected
    for each in record["deployments"]:
        assert set(each) <= {"deploy", "bits", "activations", "deploy_s", "deploy_peak_bytes"}
        assert each["deploy_s"] > 0
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved["deployments"] == record["deployments"]
    slower = deepcopy(record)
    for each in slower["deployments"]:
        each["deploy_s"] += 1
    assert differences(record, slower) == []


def test_rows_added_later_are_deployed_once_too(tmp_path: Path) -> None:
    run(complete({**RAW, "deploy": {"bits": [2, "w4a8"], "scale": "recalibrate"}}), tmp_path / "later")
    run(complete(RAW), tmp_path / "at once")
    path = tmp_path / "later/record.json"
    known = json.loads(path.read_text())["deployments"]
    assert evaluate.add_rows(tmp_path / "later", None, ["gptq"]) == 2 * 3, "none in float"
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("later", "at once")]
    rows = [sorted(record["rows"], key=str) for record in records]
    assert rows[0] == rows[1]
    assert records[0]["deployments"][: len(known)] == known
    assert sorted(places(records[0]["deployments"]), key=str) == sorted(places(records[1]["deployments"]), key=str)
    text = path.read_text()
    assert evaluate.add_rows(tmp_path / "later", None, ["gptq"]) == 0
    assert path.read_text() == text


def test_only_methods_with_a_deployment_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"method 'kure' has no deployment of its own \(legal: rtn, .*bn_reestimation.*gptq"
    ):
        evaluate.main([str(tmp_path), "--deploy", "kure"])


@pytest.mark.parametrize("deploy", ["gptq", {"name": "adaround", "iterations": 10}])
def test_a_float_run_cannot_be_chosen_by_a_method_that_does_nothing_in_float(deploy: Any) -> None:
    name = deploy if isinstance(deploy, str) else deploy["name"]
    with pytest.raises(UserError, match=f"monitor.deploy: '{name}' does nothing in float; set target_bit to 2 to 8"):
        complete({**RAW, "target_bit": None, "watch_bit": 3, "monitor": {"deploy": deploy}})
    complete({**RAW, "monitor": {"deploy": deploy}})


def test_an_observation_that_is_shared_counts_for_all_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session, observed, times = build(complete(RAW)), Evaluator.observed, []

    def slow(self: Evaluator, model: Any) -> Any:
        times.append(1)
        time.sleep(0.3)
        return observed(self, model)

    monkeypatch.setattr(Evaluator, "observed", slow)
    evaluator = replace(session.evaluator, deploys=("rtn", "gptq", "bn_reestimation"))
    found = evaluator.deployments(session.model, measure=True)
    costs = {(each.deploy, str(each.point)): each.effort.seconds for each in found}
    assert {case for case, seconds in costs.items() if seconds > 0.3} == {
        *(("rtn", "w4a8"), ("gptq", "w4a8"), ("bn_reestimation", "w4a8"))
    }
    assert costs["bn_reestimation", "w4a8"] < 0.6, "its own observation alone"
    assert len(times) == 2, "once for both, and anew after the statistics have changed"
    assert all(each.effort == Effort() for each in evaluator.deployments(session.model)), "not measured each epoch"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells how much memory a process has")
def test_memory_beyond_what_was_in_use() -> None:
    torch.ones(60 * 2**18)
    highest = process_peak_bytes()
    kept = [torch.ones(2**14) for _ in range(480)]
    kept.clear()  # memory that the process may keep for itself
    for mebibytes in (30, 5):
        with effort(CPU) as found:
            time.sleep(0.01)
            kept += [torch.ones(2**14) for _ in range(16 * mebibytes)]
            kept.clear()
        assert found.peak_bytes is not None
        assert abs(found.peak_bytes / 2**20 - mebibytes) < 5
        assert found.seconds >= 0.01
    assert process_peak_bytes() >= highest, "the peak of the whole process is not forgotten"


def test_where_memory_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_restart", lambda: False)
    with effort(CPU) as found:
        time.sleep(0.01)
    assert found.peak_bytes is None
    assert found.seconds >= 0.01
    assert found.with_part(Effort(1.0, 7)) == Effort(found.seconds + 1.0, 7)
    assert Effort(1.0, 9).with_part(Effort(2.0, 7)) == Effort(3.0, 9)
