"""Pruning, Pareto objectives, a searched target bit, shared runs, detached launches: in one process where possible."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import here, launch, records, write_sweep

from harness.cluster.worker import Worker
from harness.launch import main
from harness.sweep import plan, queue
from harness.sweep.config import read_sweep as read_sweep

SHORT = ("--set", "data.train_fraction=0.2", "--cluster", "debug", "--set", "runtime.threads=1")
ONE_RUN = ("--set", "tune.trials=1", "--set", "final.seeds=[0]")


def run(folder: Path, *extra: str, epochs: int = 1, fraction: float = 0.2, **replaced: str) -> dict[str, Any]:
    """Carry the tiny sweep out in this process; its cells by method."""
    sweep = write_sweep(folder, epochs, **replaced)
    status = main(
        [str(sweep), "--root", str(folder / "runs"), *SHORT, "--set", f"data.train_fraction={fraction}", *extra]
    )
    assert status == 0
    cells = json.loads((folder / "runs/tiny/cells.json").read_text())["cells"]
    return {cell["methods"][0]: cell for cell in cells}


@pytest.mark.slow
def test_a_pruner_ends_hopeless_trials_early(tmp_path: Path) -> None:
    # Rates from useless to good: whatever is below the median of the finished trials at an epoch is given up there.
    pruner = "{name: median, n_startup_trials: 1, n_warmup_steps: 0}"
    rates = {"{low: 1e-3, high: 1e-2, log: true}": "{low: 1e-6, high: 3e-2, log: true}"}
    run(
        tmp_path,
        "--set",
        f"pruner={pruner}",
        "--set",
        "tune.trials=6",
        "--set",
        "model.width=64",
        fraction=1.0,
        epochs=3,
        **rates,
    )
    statuses = [json.loads(path.read_text()) for path in (tmp_path / "runs/tiny/runs").glob("*/status.json")]
    pruned = [status for status in statuses if status["state"] == "pruned"]
    assert pruned
    assert len(records(tmp_path / "runs")) == len(statuses) - len(pruned)
    assert not list((tmp_path / "runs/tiny/runs").glob("*/checkpoint.pt"))


def test_several_objectives_give_a_pareto_study_with_one_choice(tmp_path: Path) -> None:
    cells = run(tmp_path, "--set", "objective=[val/acc_w2, val/acc_float]")
    for cell in cells.values():
        assert len(cell["chosen"]["value"]) == 2
        assert len(cell["finals"]) == 2


def test_the_target_bit_can_be_searched(tmp_path: Path) -> None:
    space = "{low: 0.3, high: 30, log: true}"
    cells = run(
        tmp_path,
        "--set",
        "objective=worst",
        **{
            f"    grid: {{target_bit: [2]}}\n    search: {{oscillation.strength: {space}": (
                f"    search: {{target_bit: [2, 4], oscillation.strength: {space}"
            )
        },
    )
    chosen = cells["oscillation"]["chosen"]["params"]["target_bit"]
    finals = [records(tmp_path / "runs")[run_id] for run_id in cells["oscillation"]["finals"].values()]
    assert chosen in (2, 4)
    assert [record["config"]["target_bit"] for record in finals] == [chosen, chosen]


def test_cells_that_resolve_to_one_configuration_share_its_run(tmp_path: Path) -> None:
    # Both cells tune nothing and differ in a key that does not decide numbers.
    text = {
        "methods: oscillation": "methods: ste",
        "    search: {oscillation.strength: {low: 0.3, high: 30, log: true}}": "    set: {runtime.eval_batch_size: 64}",
        "    search: {train.learning_rate: {low: 1e-3, high: 1e-2, log: true}}\n": "",
        "tune: {trials: 2}": "tune: {trials: 0}",
    }
    sweep = write_sweep(tmp_path, 1, **text)
    assert main([str(sweep), "--root", str(tmp_path / "runs"), *SHORT]) == 0
    cells = json.loads((tmp_path / "runs/tiny/cells.json").read_text())["cells"]
    assert cells[0]["finals"] == cells[1]["finals"]
    assert len(records(tmp_path / "runs")) == 2


@pytest.mark.slow
def test_a_detached_launch_returns_and_the_sweep_finishes_by_itself(tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, 1), tmp_path / "runs"
    status, output = launch(sweep, root, "--detach", "--workers", "1", *ONE_RUN)
    assert status == 0
    assert "detached as process" in output
    deadline = time.monotonic() + 120
    while len(records(root)) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(records(root)) == 4


@pytest.mark.parametrize("objective", ["mean", "val/loss_w2"])
def test_other_objectives(tmp_path: Path, objective: str) -> None:
    cells = run(tmp_path, "--set", f"objective={objective}")
    assert 0 < cells["ste"]["chosen"]["value"] < 10


def test_a_detached_launch_refuses_before_it_detaches(tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, 1), tmp_path / "runs"
    assert main([str(sweep), "--root", str(root), *SHORT, *ONE_RUN]) == 0
    status, output = here(sweep, root, "--detach", "--set", "train.epochs=9", *ONE_RUN)
    assert status == 2
    assert "base.train.epochs" in output
    status, output = here(sweep, root, "--detach", "--set", "data.train_fraction=0.2", *ONE_RUN)
    assert status == 0, output
    assert "complete, nothing to do" in output


def test_a_worker_submitted_before_the_sweep_grew_works_on_the_grown_one(tmp_path: Path) -> None:
    run(tmp_path, *ONE_RUN)
    sweep_folder = tmp_path / "runs/tiny"
    early = Worker(folder=str(sweep_folder), name="early", keep_signals=True)
    sweep = write_sweep(tmp_path, 1)
    grown = ["data.train_fraction=0.2", "runtime.threads=1", "tune.trials=1", "final.seeds=[0, 1]"]
    opened = queue.open_sweep(read_sweep(sweep, grown), tmp_path / "runs")
    plan.top_up(opened)
    assert early() == 2
    assert {record["config"]["seed"] for record in records(tmp_path / "runs").values()} == {0, 1, 1000}
