"""A sweep of language modelling, in this process: trials, finals, table, archive."""

from pathlib import Path
from typing import Any

import pytest
from studies_common import claims

from analysis.disk_source import load_results
from analysis.grouping import make_groups
from analysis.measure import baseline_scores
from harness.archive import main as archive
from harness.cli import builds, progress
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.training.run import run

SEARCH = {"train.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
SWEEP: dict[str, Any] = {
    "name": "text",
    "base": {
        "model": {"name": "llama", "layers": 1, "width": 16, "heads": 2},
        "train": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "schedule": "cosine"},
        "deploy": {"bits": [2, 4], "scale": "recalibrate"},
        "runtime": {"wandb": "off", "device": "cpu", "threads": 1},
    },
    "cells": [
        {"methods": "none", "set": {"watch_bit": 2}, "search": SEARCH},
        {"methods": "oscillation", "grid": {"target_bit": [2]}, "search": SEARCH},
    ],
    "tune": {"trials": 2},
    "final": {"seeds": [0]},
    "sampler": "random",
}


@pytest.mark.slow
def test_a_sweep_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"{number} squared is {number**2}\n" for number in range(60)))
    data = {"name": "text", "root": "text.txt", "context": 8, "windows": 16}
    spec = SweepConfig.model_validate({**SWEEP, "base": {**SWEEP["base"], "data": data}})
    opened = queue.open_sweep(spec, tmp_path / "runs")
    assert builds.check_builds(opened.spec, opened.cells) == []
    plan.top_up(opened)
    for _ in range(2):  # trials, then finals
        for claim in claims(opened):
            record = run(claim.config, opened.files.run(claim.run_id).path)
            queue.tell(claim, queue.objectives(opened, claim, record))
        plan.top_up(opened)
    for study in opened.studies.values():
        assert study.direction.name == "MINIMIZE"
    assert progress.summary(opened) == 0
    assert "then test bits per character" in " ".join(capsys.readouterr().out.split())
    assert archive(["pack", str(tmp_path / "runs/text"), "--to", str(tmp_path / "kept")]) == 0
    for root in ("runs", "kept"):
        found = load_results(tmp_path / root, "text")
        assert len(found.finals) == 2
        scores = {row["score"] for final in found.finals for row in final.record["rows"]}
        assert all(1 < score < 8 for score in scores)
        (group,) = make_groups(found)
        assert [one.deploy for one in group.series] == ["rtn"] * 2
        name, unigram = baseline_scores(group.finals[0].record) or ("", {})
        assert (name, unigram.keys()) == ("unigram", {"float"})
        behind = min(mean for one in group.series for mean in one.scores("float")) >= unigram["float"]
        assert behind == any("is better in float with every seed than unigram" in note for note in group.notes)
