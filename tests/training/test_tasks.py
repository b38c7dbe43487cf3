"""Tasks in runs: a task that the harness does not know trains and is evaluated; what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scratch_task import RAW, install

from harness import evaluate
from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.methods.base import Context
from harness.records import schema
from harness.repeat import differences
from harness.tasks.base import find
from harness.tasks.classification import ACCURACY
from harness.training.build import build
from harness.training.config import complete
from harness.training.finite import TrainingError
from harness.training.loop import train, validate
from harness.training.run import epoch_line, run


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "scratch", monkeypatch)


def config(**changes: Any) -> Any:
    return complete({**RAW, **changes})


def test_a_run_of_a_new_task(tmp_path: Path) -> None:
    asked = config()
    record = run(asked, tmp_path / "run")
    rows = record["rows"]
    assert {tuple(row) for row in rows} == {schema.SCORED_ROW, (*schema.SCORED_ROW, schema.CODES)}
    assert {(row["metric"], row["n"]) for row in rows} == {("mae", 71)}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/monitor"] for line in lines] == [line["val/mae_w3"] for line in lines]
    assert record["monitor"] == min(line["val/mae_w3"] for line in lines), "lower is better"
    assert lines[0]["val/mae_worst"] == max(lines[0]["val/mae_w2"], lines[0]["val/mae_w3"])
    assert f"val {lines[0]['val/mae_w3']:.2f} w3" in epoch_line(asked, lines[0]).replace("at 3 bits", "w3")
    assert differences(record, record) == []
    assert evaluate.add_rows(tmp_path / "run", [4], []) == 2
    session = build(asked)
    inputs, targets = session.dataset.test.inputs, session.dataset.test.targets  # type: ignore[attr-defined]
    (row,) = session.evaluator.rows(session.model, "final", "test", [("rtn", BitWidths(3))])
    with torch.no_grad():
        outputs = session.evaluator.deployed(session.model, 3)(inputs)
    assert row["score"] == pytest.approx((outputs - targets).abs().double().mean().item())


def with_scores(session: Any, scores: list[float]) -> None:
    left = iter(scores)

    class Fixed:
        def rows(self, model: Any, phase: str, split: str, *chosen: Any) -> list[dict[str, Any]]:
            score, bits = next(left), [each.plain for each in session.config.evaluated_points]
            values = [(phase, split, "rtn", "s", b, "mae", score, 1.0, 1) for b in bits]
            return [dict(zip(schema.SCORED_ROW, each, strict=True)) for each in values]

    session.evaluator = Fixed()


def test_the_best_epoch_and_patience_go_by_the_direction_of_the_metric() -> None:
    session = build(config(train={**RAW["train"], "epochs": 9, "patience": 2}))
    with_scores(session, [0.5, 0.25, 0.25, 0.75, 0.125])
    train(session, lambda metrics: None)
    assert (session.progress.epoch, session.progress.best_epoch, session.progress.best_value) == (4, 2, 0.25)


@pytest.mark.parametrize("score", [-0.5, float("nan")])
def test_a_score_that_is_not_legal_ends_the_run(score: float) -> None:
    session = build(config())
    with_scores(session, [score])
    with pytest.raises(TrainingError, match=r"validation \(.*\) in epoch 0: mean absolute error is .*legal: 0 to inf"):
        validate(session)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"name": "mlp5"}},
            "model 'mlp5' serves classification, and the task of data set 'diabetes' is regression "
            "(models for it: rows)",
        ),
        ({"data": {"name": "digits"}}, "model 'rows' serves regression, and the task of data set 'digits' is"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing: 0.1 has no meaning in the task regression"),
        ({"pretrain": {"label_smoothing": 0.1}}, "pretrain.label_smoothing: 0.1 has no meaning"),
        ({"data": {"name": "diabetes", "resize": 4}}, "resize"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config(**changes)
    assert said in str(refused.value)


def test_a_task_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scratch" / "data" / "diabetes.py"
    path.write_text(path.read_text().replace('= "regression"', '= "regresion"'))
    from harness.tasks import base

    base._task_of_data.cache_clear()
    with pytest.raises(UserError, match=r"data set 'diabetes': unknown task 'regresion'.*did you mean 'regression'"):
        config()
    base._task_of_data.cache_clear()


@pytest.mark.parametrize("name", ["any_precision", "aoq"])
def test_methods_take_their_losses_from_the_task(name: str) -> None:
    assert Context().task is find("classification")
    task = find("regression")
    outputs, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    assert float(task.distillation(outputs, teacher)) == float(task.divergence(outputs, teacher)) == 1.5
    if name == "aoq":
        settings = [{"name": "aoq", "teacher": "initial"}]
        train(build(config(methods=settings, train={**RAW["train"], "epochs": 1})), lambda metrics: None)


def test_classification_measures_what_it_did() -> None:
    task, logits, labels = find("classification"), torch.randn(9, 5), torch.arange(9) % 5
    correct, loss = task.summed(logits, labels, torch.zeros(9)).tolist()
    assert correct == (logits.argmax(1) == labels).sum()
    assert loss / 9 == pytest.approx(float(task.loss(logits, labels)))
    teacher = torch.randn(9, 5)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.divergence(logits, teacher), task.distillation(logits, teacher) - entropy)
    assert ACCURACY.shown(0.93214) == "93.21 %"
    assert ACCURACY.shown(0.05, width=6) == "  5.00 %"


def test_metrics_have_keys_that_metric_names_can_hold() -> None:
    for key in ("", "Acc", "a_b", "loss", "monitor"):
        with pytest.raises(ValueError, match="is no key"):
            Metric("x", key, higher_is_better=True, margin=0, tolerance=0)
    beside = Metric("y", "y", higher_is_better=False, margin=0, tolerance=0)
    both = Metric("x", "x", higher_is_better=True, margin=0, tolerance=0, beside=(beside,))
    row = {"split": "val", "deploy": "rtn", "bits": 2, "metric": "x", "score": 1.0, "loss": 3.0, "y": 2.0}
    found = {"val/x_w2": 1.0, "val/loss_w2": 3.0, "val/y_w2": 2.0, "val/x_worst": 1.0, "val/x_spread": 0.0}
    assert schema.as_metrics([row], both) == found
