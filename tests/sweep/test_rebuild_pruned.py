"""A sweep with a pruner whose queue is lost, or that was packed and unpacked: pruned trials stay pruned."""

import json
import math
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from studies_common import open_sweep
from tiny_sweep import write_sweep

from harness.archive import main as archive
from harness.launch import main as launch
from harness.status import main as status
from harness.sweep import plan, queue
from harness.sweep.queue import load_sweep
from harness.sweep.rebuild import _placed, as_it_is
from harness.sweep.trials_over import TrialOver

TRIALS = 6
#: From useless rates to good ones: those below the median, or not in the better half, are given up after an epoch.
CHANGES = {
    "{low: 1e-3, high: 1e-2, log: true}": "{low: 1e-6, high: 3e-2, log: true}",
    "tune: {trials: 2}": f"tune: {{trials: {TRIALS}}}",
}
MEDIAN = "{name: median, n_startup_trials: 1, n_warmup_steps: 0}"
HALVING = "{name: successive_halving, min_resource: 1, reduction_factor: 2}"
TPE = "{name: tpe, n_startup_trials: 2}"


@pytest.fixture(scope="module", params=[("random", MEDIAN), (TPE, MEDIAN), (TPE, HALVING)], ids=["random", "tpe", "sh"])
def carried_out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and its finished sweep in runs/, of which trials were pruned; not to be changed."""
    folder = tmp_path_factory.mktemp("pruned")
    sampler, pruner = request.param
    write_sweep(
        folder, 3, **CHANGES, **{"sampler: random": f"sampler: {sampler}\npruner: {pruner}\nobjective: val/loss_w4"}
    )
    assert launch(command(folder, folder / "runs")) == 0
    assert pruned(folder / "runs") > 0
    return folder


def command(folder: Path, root: Path, *extra: str) -> list[str]:
    return [str(folder / "tiny.yaml"), "--root", str(root), "--cluster", "debug", *extra]


def pruned(root: Path) -> int:
    statuses = [json.loads(path.read_text()) for path in root.glob("tiny/runs/*/status.json")]
    return sum(each["state"] == "pruned" for each in statuses)


def trials(root: Path) -> dict[str, list[Any]]:
    """All that samplers and pruners see of the trials."""
    return {
        cell: [
            (each.number, each.state, each.params, each.values, each.intermediate_values, rungs(each.system_attrs))
            for each in study.get_trials()
        ]
        for cell, study in as_it_is(load_sweep(root / "tiny")).studies.items()
    }


def rungs(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key.startswith("completed_rung")}


def unpacked(folder: Path, root: Path) -> None:
    assert archive(["pack", str(folder / "runs/tiny"), "--to", str(root / "kept")]) == 0
    assert archive(["unpack", str(root / "kept/tiny"), "--to", str(root)]) == 0


def without_queue(folder: Path, root: Path) -> None:
    shutil.copytree(folder / "runs", root, dirs_exist_ok=True)
    (root / "tiny/study.log").unlink()


@pytest.mark.parametrize("moved", [unpacked, without_queue])
def test_a_finished_sweep_is_left_alone(
    carried_out: Path, tmp_path: Path, moved: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    moved(carried_out, tmp_path)
    before = trials(carried_out / "runs")
    cells = (tmp_path / "tiny/cells.json").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/runs/*/metrics.jsonl")}
    assert trials(tmp_path) == before
    capsys.readouterr()
    assert status([str(carried_out / "tiny.yaml"), "--root", str(tmp_path)]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    count = pruned(tmp_path)
    assert count == pruned(carried_out / "runs")
    assert head.startswith(f"tiny: complete, {2 * TRIALS + 4 - count} of {2 * TRIALS + 4} runs done, {count} pruned")
    assert launch(command(carried_out, tmp_path, "--dry-run")) == 0
    assert "complete, nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "tiny/study.log").exists()
    assert launch(command(carried_out, tmp_path)) == 0
    assert "rebuilt from the records" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/runs/*/metrics.jsonl")} == stamps
    assert (tmp_path / "tiny/cells.json").read_bytes() == cells
    assert trials(tmp_path) == before


def test_an_unfinished_one_goes_on_at_the_right_numbers(carried_out: Path, tmp_path: Path) -> None:
    """Of a trial in the middle, and of one at the end, nothing is there any more."""
    without_queue(carried_out, tmp_path)
    (tmp_path / "tiny/cells.json").unlink()
    before = trials(carried_out / "runs")
    gone = (2, TRIALS - 1)
    for path in tmp_path.glob("tiny/runs/*/trials.json"):
        if any(entry["phase"] == "tune" and entry["trial"] in gone for entry in json.loads(path.read_text())):
            shutil.rmtree(path.parent)
    sweep = load_sweep(tmp_path / "tiny")
    plan.top_up(sweep)
    after = trials(tmp_path)
    for cell, own in before.items():
        assert len(after[cell]) == TRIALS
        for number in range(TRIALS):
            if number not in gone:
                assert after[cell][number] == own[number]
        assert [each[1].name for each in after[cell] if each[0] in gone] == ["WAITING"] * len(gone)
    if sweep.spec.sampler.name == "random":
        drawn = {}
        while (claim := queue.claim(sweep, "w")) is not None:
            drawn[claim.cell.id, claim.trial.number] = dict(claim.params)
        assert drawn == {(cell, number): own[number][2] for cell, own in before.items() for number in gone}
    else:
        assert launch(command(carried_out, tmp_path)) == 0
        assert plan.left(load_sweep(tmp_path / "tiny")) == 0


def test_the_archive_says_how_many_are_pruned_and_keeps_what_the_pruner_saw(
    carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    unpacked(carried_out, tmp_path)
    runs, count = len(list(carried_out.glob("runs/tiny/runs/*"))), pruned(carried_out / "runs")
    for line in capsys.readouterr().out.splitlines():
        assert f": {runs} runs, {count} of them pruned" in line
    with zipfile.ZipFile(tmp_path / "kept/tiny/runs.zip") as packed:
        files = Counter(name.partition("/")[2] for name in packed.namelist())
    assert files["metrics.jsonl"] == files["trials.json"] == files["config.json"] == runs


def test_an_archive_of_an_earlier_version_knows_that_they_were_pruned(
    carried_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_queue(carried_out, tmp_path)
    for path in tmp_path.glob("tiny/runs/*/status.json"):
        if json.loads(path.read_text())["state"] == "pruned":
            for name in ("config.json", "metrics.jsonl"):
                (path.parent / name).unlink()
    capsys.readouterr()
    assert status([str(carried_out / "tiny.yaml"), "--root", str(tmp_path)]) == 0
    assert f", {pruned(tmp_path)} pruned" in capsys.readouterr().out.splitlines()[0]


def test_an_epoch_without_a_finite_value_is_not_a_number_again(carried_out: Path, tmp_path: Path) -> None:
    """Metrics that are not finite are left out of metrics.jsonl; the pruner was told of them."""
    without_queue(carried_out, tmp_path)
    for path in tmp_path.glob("tiny/runs/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        del lines[-1]["val/loss_w4"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sweep = load_sweep(tmp_path / "tiny")
    plan.top_up(sweep)
    for study in load_sweep(tmp_path / "tiny").studies.values():
        for trial in study.get_trials():
            assert math.isnan(trial.intermediate_values[trial.last_step or 0])
            assert (trial.value is None) == (trial.state == TrialState.PRUNED)


def test_what_was_drawn_again_by_an_earlier_version_stays(tmp_path: Path) -> None:
    """It forgot trial 0, which was pruned, and gave trial 2 the number 1; its own trial 2 was drawn in place of 0."""
    sweep = open_sweep(tmp_path, sampler={"name": "tpe", "n_startup_trials": 2}, pruner="median")
    found = [TrialOver(0, {}, "forgotten", None, {})]
    found += [TrialOver(number, {}, run, [0.5], {}) for number, run in ((1, "a"), (2, "b"), (2, "c"))]
    placed = _placed(sweep.spec, sweep.cells[0], found)
    assert [each and each.run_id for each in placed] == ["a", "b", "c"]
