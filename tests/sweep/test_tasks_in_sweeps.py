"""A sweep of a task that the harness does not know: direction, objectives, choice, table."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scratch_task import SWEEP, install, write
from studies_common import claims

import harness
from harness.cli import builds, progress
from harness.core import yaml_file
from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.dashboard import _facts
from harness.sweep import objective, plan, queue
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig, read_sweep
from harness.training.run import run
from harness.training.wandb_mirror import Mirror

ERROR = Metric("mean absolute error", "mae", higher_is_better=False, margin=1, tolerance=0.1)


def sweep(root: Path, **changes: Any) -> queue.OpenSweep:
    return queue.open_sweep(SweepConfig.model_validate({**yaml_file.parse(SWEEP), **changes}), root)


def carry_out(opened: queue.OpenSweep) -> None:
    plan.top_up(opened)
    for _ in range(2):  # trials, then finals
        for claim in claims(opened):
            record = run(claim.config, opened.files.run(claim.run_id).path)
            queue.tell(claim, queue.objectives(opened, claim, record))
        plan.top_up(opened)


def test_a_new_task_is_tuned_and_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "scratch", monkeypatch)
    opened = sweep(tmp_path, sampler="random")
    assert builds.check_builds(opened.spec, opened.cells) == []
    carry_out(opened)
    for cell, study in opened.studies.items():
        assert study.direction.name == "MINIMIZE"
        values = [trial.values[0] for trial in study.get_trials()]
        entry = next(each for each in opened.files.cell_entries() if each["id"] == cell)
        assert entry["chosen"]["value"] == min(values) < max(values)
    assert progress.summary(opened) == 0
    assert "then test mean absolute error" in " ".join(capsys.readouterr().out.split())
    assert _facts(opened.spec, opened.cells).at_target == "val/monitor.min"


def test_objectives_go_in_the_direction_of_the_metric() -> None:
    metrics = {"val/mae_w2": 0.5, "val/mae_w3": 0.25, "val/loss_w2": 3.0, "val/loss_w3": 4.0}
    assert objective.value("worst", metrics, [2, 3], 3, ERROR) == 0.5
    assert objective.loss_at("worst", metrics, [2, 3], 3, ERROR) == 3.0
    assert objective.value("target", metrics, [2, 3], 3, ERROR) == 0.25
    names = ("target", "worst", "mean", "val/mae_w3", "val/loss_w3")
    assert {objective.direction(name, ERROR) for name in names} == {"minimize"}
    with pytest.raises(UserError, match=r"'val/acc_w2' is unknown.*legal: target, mean, worst, val/mae_w2 to val/mae"):
        objective.check("val/acc_w2", ERROR)


def test_figures_beside_the_metric_are_objectives() -> None:
    both = Metric("x", "x", higher_is_better=False, margin=1, tolerance=1, beside=(ERROR,))
    assert objective.check("val/mae_w2", both) == "val/mae_w2"
    higher = Metric("y", "y", higher_is_better=True, margin=1, tolerance=1, beside=(ERROR,))
    assert objective.direction("val/mae_w2", higher) == "minimize"
    assert objective.direction("worst", higher) == "maximize"


def test_data_sets_of_several_tasks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "scratch", monkeypatch)
    path = tmp_path / "mixed.yaml"
    path.write_text(SWEEP + "grid: {data.name: [diabetes, digits]}\n")
    with pytest.raises(UserError, match=r"base.data: diabetes \(regression\), digits \(classification\)"):
        read_sweep(path)
    with pytest.raises(UserError, match=r"cell ste,model.name=mlp5,target_bit=2: model 'mlp5' serves classification"):
        expand(SweepConfig.model_validate({**yaml_file.parse(SWEEP), "grid": {"model.name": ["mlp5"]}}))


@pytest.mark.parametrize(("higher", "summary"), [(True, "max"), (False, "min")])
def test_the_summary_on_wandb_is_of_the_best_epoch(higher: bool, summary: str) -> None:
    asked: dict[str, Any] = {}

    class Copy:
        resumed = False

        def define_metric(self, name: str, **how: Any) -> None:
            asked[name] = how

    mirror = object.__new__(Mirror)
    task = type("T", (), {"metric": Metric("x", "x", higher_is_better=higher, margin=1, tolerance=1)})
    mirror._config = type("C", (), {"task": task})  # type: ignore[assignment]
    mirror._init = lambda mode, again: Copy()  # type: ignore[method-assign]
    mirror._start("offline", ())
    assert asked["val/*"]["summary"] == summary


@pytest.mark.slow
def test_a_launch_from_a_copy_with_three_files_more(tmp_path: Path) -> None:
    import shutil

    home = Path(harness.__file__).parent
    shutil.copytree(home, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "harness")
    (tmp_path / "rows.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "harness.launch", "rows.yaml", "--root", "runs", "--cluster", "local"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "mean absolute error" in ended.stdout
