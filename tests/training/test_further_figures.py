"""`deploy.figures`: F1 and balanced accuracy, where they are asked for and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from studies_common import raw as sweep_raw

from harness.core.errors import UserError
from harness.repeat import differences
from harness.sweep import objective
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig
from harness.tasks.base import find, task_of_run
from harness.training.config import complete
from harness.training.run import run

RAW: dict[str, Any] = {
    "methods": "ste",
    "target_bit": 2,
    "model": {"name": "mlp5", "hidden": [8]},
    "data": {"name": "digits"},
    "train": {"epochs": 1},
    "deploy": {"bits": [2], "scale": "keep_range"},
    "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
}
ASKED = {**RAW, "deploy": {**RAW["deploy"], "figures": ["bacc", "f1"]}}


@pytest.mark.parametrize("missing", [(), (3,), (0, 4)], ids=["all", "no 3", "no 0 and 4"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_they_are_those_of_scikit_learn(missing: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(missing))
    outputs = torch.randn(300, 5, generator=generator)
    outputs[:, list(missing[1:])] -= 9  # not predicted either
    targets = torch.randint(5, (300,), generator=generator)
    kept = ~torch.isin(targets, torch.tensor(missing, dtype=torch.long))
    outputs, targets = outputs[kept], targets[kept]
    task = find("classification").measuring(["f1", "bacc"])
    sums = sum(task.summed(o, t, o) for o, t in zip(outputs.split(64), targets.split(64), strict=True))
    found = task.results(sums.tolist(), len(targets))  # type: ignore[union-attr]
    predicted = outputs.argmax(1)
    assert found[0] == pytest.approx((predicted == targets).double().mean().item())
    assert found[2] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-12)
    assert found[3] == pytest.approx(balanced_accuracy_score(targets, predicted), abs=1e-12)


def test_nothing_is_counted_unasked() -> None:
    task, outputs, targets = find("classification"), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert task.measuring([]) is task
    assert len(task.summed(outputs, targets, outputs)) == 2
    asked = task.measuring(["f1"])
    assert asked is task.measuring(["f1"])
    assert (asked.name, type(asked).__mro__[1]) == (task.name, type(task))
    assert [each.key for each in asked.metric.beside] == ["f1"]
    assert task.metric.beside == ()


def test_a_run_has_them_beside_what_it_has_anyway(tmp_path: Path) -> None:
    plain, asked = (run(complete(raw), tmp_path / name) for name, raw in (("plain", RAW), ("asked", ASKED)))
    assert plain["run_id"] == asked["run_id"]
    figures = ("f1", "bacc")
    assert [{k: v for k, v in row.items() if k not in figures} for row in asked["rows"]] == plain["rows"]
    assert all(0 <= row[key] <= 1 for row in asked["rows"] for key in figures)
    epoch = (tmp_path / "asked" / "metrics.jsonl").read_text()
    assert '"val/f1_w2"' in epoch
    assert '"val/bacc_float"' in epoch
    changed = [{**row, "f1": 0.0} for row in asked["rows"]]
    assert differences(asked, asked) == []
    assert len(differences({**asked, "rows": changed}, asked)) == len(changed)
    assert [each.key for each in task_of_run(asked["config"]).metric.beside] == ["f1", "bacc"]


@pytest.mark.parametrize(
    ("data", "figures", "said"),
    [
        ("digits", ["f2"], r"deploy\.figures: unknown figure 'f2'; did you mean 'f1'\? \(legal: f1, bacc\)"),
        ("sample_images", ["f1"], r"deploy\.figures: unknown figure 'f1' \(legal: none: the task super_resolution"),
    ],
)
def test_other_figures_are_refused(data: str, figures: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        complete({**RAW, "data": {"name": data}, "deploy": {**RAW["deploy"], "figures": figures}})


def sweep(figures: list[str], **changes: Any) -> SweepConfig:
    given = sweep_raw(**changes)
    given["base"]["deploy"]["figures"] = figures
    return SweepConfig.model_validate(given)


def test_an_objective_may_be_one() -> None:
    spec = sweep(["f1"], objective="val/f1_w3")
    expand(spec)
    assert objective.direction(spec.objective[0], spec.metric) == "maximize"
    metrics = {"val/f1_w3": 0.25, "val/loss_w3": 1.5}
    assert objective.value("val/f1_w3", metrics, [3], 3, spec.metric) == 0.25
    assert objective.loss_at("val/f1_w3", metrics, [3], 3, spec.metric) == 1.5


def test_an_objective_that_no_run_measures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'val/f1_w3': no run measures f1; set deploy\.figures: \[f1\]"):
        sweep([], objective="val/f1_w3")
    cell = {"methods": "lsq", "grid": {"target_bit": [2]}, "search": sweep_raw()["cells"][0]["search"]}
    cells = [*sweep_raw()["cells"], {**cell, "set": {"deploy.figures": []}}]
    given = sweep_raw(objective="val/f1_w3", cells=cells)
    given["cells"][0]["set"] = {"deploy.figures": ["f1"]}
    with pytest.raises(UserError, match=r"val/f1_w3 was not evaluated; add f1 to deploy\.figures"):
        expand(SweepConfig.model_validate(given))
