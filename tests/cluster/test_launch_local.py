"""Launching for real: local workers through Submitit, a second launch, and kill -9 in the middle."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from tiny_sweep import RUNS, here, launch, records, rows, start, write_sweep

from harness.records.files import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An undisturbed sweep: its file, its root, and what launching it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep = write_sweep(folder)
    status, output = launch(sweep, folder / "runs")
    assert status == 0, output
    return sweep, folder / "runs", output


def test_a_sweep_runs_to_its_end_and_reports(finished: tuple[Path, Path, str]) -> None:
    _, root, output = finished
    found = records(root)
    assert len(found) == RUNS
    assert sorted(record["phase"] for record in found.values()) == ["final"] * 4 + ["tune"] * 4
    assert "tuning 4/4" in output
    assert "final runs 4/4" in output
    cells = json.loads((root / "tiny" / "cells.json").read_text())["cells"]
    for cell in cells:
        assert cell["chosen"]["run_id"] in found
        assert all(found[run_id]["config"]["seed"] == int(seed) for seed, run_id in cell["finals"].items())


def test_tuning_never_sees_the_test_split_and_finals_do(finished: tuple[Path, Path, str]) -> None:
    for record in records(finished[1]).values():
        splits = {row["split"] for row in record["rows"]}
        assert splits == ({"val"} if record["phase"] == "tune" else {"val", "test"})


def test_only_finals_keep_their_best_weights(finished: tuple[Path, Path, str]) -> None:
    for run_id, record in records(finished[1]).items():
        folder = finished[1] / "tiny" / "runs" / run_id
        assert (folder / "best.safetensors").exists() == (record["phase"] == "final")
        assert not (folder / "checkpoint.pt").exists()


def test_launching_a_finished_sweep_does_nothing_and_says_so(finished: tuple[Path, Path, str]) -> None:
    sweep, root, _ = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.json")}
    log = (root / "tiny" / "study.log").read_bytes()
    status, output = here(sweep, root)
    assert status == 0
    assert "complete, nothing to do" in output
    assert {path: path.stat().st_mtime_ns for path in root.rglob("record.json")}.items() <= before.items()
    assert (root / "tiny" / "study.log").read_bytes() == log


def test_an_edited_sweep_is_refused_by_its_keys_and_a_grown_one_is_not(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    sweep, root, _ = finished
    status, output = here(sweep, root, "--set", "base.train.epochs=3", "--set", "sampler=qmc")
    assert status == 2
    assert "base.train.epochs" in output
    assert "sampler.name" in output
    before = records(root)
    status, output = here(sweep, root, "--set", "final.seeds=[0, 1, 2]", "--cluster", "debug")
    assert status == 0, output
    added = records(root).keys() - before.keys()
    assert {records(root)[run_id]["config"]["seed"] for run_id in added} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("whole_tree", [True, False], ids=["launch and workers", "launch alone"])
def test_killed_midway_it_finishes_without_repeating_a_run(
    finished: tuple[Path, Path, str], tmp_path: Path, whole_tree: bool
) -> None:
    sweep, root = write_sweep(tmp_path), tmp_path / "runs"
    process = start(sweep, root)
    deadline = time.monotonic() + 120
    while len(records(root)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    if whole_tree:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    before = {run_id: (root / "tiny/runs" / run_id / "record.json").stat().st_mtime_ns for run_id in records(root)}
    assert 2 <= len(before) < RUNS
    status, output = launch(sweep, root)
    assert status == 0, output
    after = {run_id: (root / "tiny/runs" / run_id / "record.json").stat().st_mtime_ns for run_id in records(root)}
    assert before.items() <= after.items(), "a finished run was repeated"
    undisturbed = {run_id: value for run_id, value in rows(finished[1]).items() if run_id in rows(root)}
    assert rows(root) == undisturbed
    assert len(rows(root)) == RUNS


@pytest.mark.slow
def test_interrupted_by_ctrl_c_it_stops_at_a_step_and_continues(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    sweep, root = write_sweep(tmp_path), tmp_path / "runs"
    process = start(sweep, root, "--workers", "1")  # two would be done before Ctrl-C comes
    deadline = time.monotonic() + 120
    while len(records(root)) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command continues" in output
    status, output = launch(sweep, root, "--workers", "1")
    assert status == 0, output
    assert rows(root) == {run_id: value for run_id, value in rows(finished[1]).items() if run_id in rows(root)}
    assert len(rows(root)) == RUNS


@pytest.mark.slow
def test_ctrl_c_stops_every_worker_at_a_step(tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, 3000), tmp_path / "runs"
    process = start(sweep, root, "--workers", "2")
    deadline = time.monotonic() + 120
    while len(list(root.glob("tiny/runs/*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=180)  # seconds; slow tests yield to all others, and took over 60 once
    assert process.returncode == 130, output
    runs = [path.parent for path in root.glob("tiny/runs/*/metrics.jsonl")]
    assert [(read_json(run / "status.json")["state"], (run / "checkpoint.pt").exists()) for run in runs] == [
        ("cancelled", True)
    ] * 2


def test_a_run_that_fails_is_retried_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    # At these strengths plain SGD overflows within an epoch; the other cell is sound.
    sweep = write_sweep(
        tmp_path,
        **{
            "{low: 0.3, high: 30, log: true}": "{low: 1e5, high: 1e6, log: true}",
            "batch_size: 100": "batch_size: 100, optimizer: sgd, learning_rate: 0.1",
        },
    )
    status, output = here(sweep, tmp_path / "runs", "--cluster", "debug")
    assert status == 1, output
    assert re.search(r"TrainingError: the \w+ loss .*became (nan|inf) in epoch", output)
    assert "no trial completed" in output
    done = records(tmp_path / "runs").values()
    assert [record["config"]["methods"][0]["name"] for record in done] == ["ste"] * 4
    failed = [
        status
        for path in (tmp_path / "runs/tiny/runs").glob("*/status.json")
        if (status := json.loads(path.read_text()))["state"] == "failed"
    ]
    assert len(failed) == 2
    assert all(status["failures"] == 2 and "Traceback" in status["traceback"] for status in failed)


@pytest.mark.slow
def test_figures_come_out_of_a_finished_sweep(
    finished: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis import make_figures

    assert make_figures.main(["--root", str(finished[1]), "--out", str(tmp_path)]) == 0
    assert "oscillation@2" in capsys.readouterr().out
    for name in ("accuracy_over_bits.pdf", "cross_bit_table.tex", "oscillation_over_training.png"):
        assert (tmp_path / name).stat().st_size > 400
