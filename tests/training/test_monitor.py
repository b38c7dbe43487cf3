"""`monitor.deploy`: the best epoch and patience go by accuracy after a deploy method."""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from training_details_common import config

from harness.core.errors import UserError
from harness.methods import bn_reestimation
from harness.methods.bn_reestimation import batch_norms, reestimate
from harness.quantization.deploy import round_to_nearest
from harness.records import schema
from harness.tasks.classification import ACCURACY
from harness.training import cost
from harness.training.build import build
from harness.training.config import RunConfig
from harness.training.evaluator import Evaluator, evaluate_all
from harness.training.loop import train
from harness.training.run import epoch_line, run
from harness.training.session import Session

RESNET = {"name": "resnet18", "width": 2}
AFTER = {"name": "bn_reestimation", "batches": 2}


def monitored(deploy: Any = AFTER, **changes: Any) -> RunConfig:
    return config(changes.pop("methods", "ste"), model=RESNET, monitor={"deploy": deploy}, **changes)


def by_hand(session: Session, bits: Any) -> float:
    """Validation accuracy of the rounded network with the statistics of two batches."""
    copy = deepcopy(session.model).eval()
    round_to_nearest(copy, bits)
    reestimate(copy, batch_norms(copy), session.evaluator.calibration, 2)
    return evaluate_all([copy], session.task, session.dataset, session.dataset.val, 1024)[0].figures[0]


@pytest.mark.parametrize("target", [3, None], ids=["w3", "float"])
def test_each_epoch_is_measured_after_it(target: int | None) -> None:
    how: dict[str, Any] = {"target_bit": target, "methods": "ste" if target else "none", "watch_bit": 3}
    session, plain = build(monitored(**how)), build(monitored("rtn", **how))
    lines: list[dict[str, Any]] = []
    expected: list[float] = []

    def epoch_done(metrics: dict[str, Any]) -> None:
        lines.append(metrics)
        expected.append(by_hand(session, target or "float"))

    train(session, epoch_done)
    key = schema.score(ACCURACY, "val", target or "float")
    assert [line[schema.MONITOR] for line in lines] == expected
    assert [line[f"{key}_after_bn_reestimation"] for line in lines] == expected
    assert (session.progress.best_value, session.progress.best_epoch) == (
        max(expected),
        expected.index(max(expected)) + 1,
    )
    as_before: list[dict[str, Any]] = []
    train(plain, as_before.append)
    same = [{name: line[name] for name in before if name != schema.MONITOR} for line, before in zip(lines, as_before)]
    assert same == [{name: value for name, value in line.items() if name != schema.MONITOR} for line in as_before]
    assert [line[schema.MONITOR] for line in as_before] == [line[key] for line in as_before]


def test_an_epoch_costs_one_more_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(bn_reestimation, "reestimate", lambda model, norms, calibration, count: asked.append(count))
    train(build(monitored(deploy__methods=["rtn", "bn_reestimation"])), lambda metrics: None)
    assert asked == [2, 2]


def test_patience_and_the_best_epoch_go_by_it() -> None:
    """Made-up accuracies: round-to-nearest is best in epoch 4, the monitored method in epoch 2."""
    after, plain = iter([0.1, 0.6, 0.5, 0.6, 0.9]), iter([0.1, 0.2, 0.3, 0.4, 0.5])

    class Fixed:
        def rows(self, model: nn.Module, phase: str, split: str, cases: Any) -> list[dict[str, Any]]:
            values = {"rtn": next(plain), "bn_reestimation": next(after)}
            found = [(phase, split, deploy, "s", p.plain, values[deploy], 1.0, 1) for deploy, p in cases]
            return [dict(zip(schema.ROW, row, strict=True)) for row in found]

    session = build(monitored(train__epochs=50, train__patience=2))
    session.evaluator = Fixed()  # type: ignore[assignment]
    states: list[dict[str, Tensor]] = []
    train(session, lambda metrics: states.append(deepcopy(session.model.state_dict())))
    progress = session.progress
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (4, 2, 0.6)
    assert all(progress.best_state[name].equal(value) for name, value in states[1].items())


@pytest.mark.parametrize(
    ("deploy", "listed", "deploys"),
    [
        (AFTER, ["rtn"], ["rtn", "bn_reestimation"]),
        (AFTER, ["bn_reestimation"], ["rtn", "bn_reestimation"]),
        pytest.param("rtn", ["bn_reestimation"], ["rtn", "bn_reestimation"], marks=pytest.mark.slow),
    ],
)
def test_the_record_has_rows_of_it(deploy: Any, listed: list[str], deploys: list[str], tmp_path: Path) -> None:
    given = monitored(deploy, deploy__methods=listed, train__epochs=1)
    record = run(given, tmp_path)
    points = [2, 3, 8, "float"]
    found = [(row["split"], row["deploy"], row["bits"]) for row in record["rows"]]
    assert found == [(split, name, point) for split in ("val", "test") for name in deploys for point in points]
    chosen = [
        row for row in record["rows"] if (row["split"], row["deploy"], row["bits"]) == ("val", given.monitor.name, 3)
    ]
    assert [row["accuracy"] for row in chosen] == [record["monitor"]]


def test_an_epochs_line_names_it() -> None:
    metrics = {schema.EPOCH: 1, schema.TRAIN_LOSS: 1.0, schema.MONITOR: 0.5, schema.FREQUENCY: 0.0}
    assert "val 50.00 % at 3 bits after bn_reestimation  osc" in epoch_line(monitored(), metrics)
    assert "val 50.00 % at 3 bits  osc" in epoch_line(monitored("rtn"), metrics)
    floating = monitored(target_bit=None, watch_bit=2, methods="none")
    assert "val 50.00 % in float after bn_reestimation  osc" in epoch_line(floating, metrics)


def test_an_estimate_counts_it() -> None:
    measured = cost.measure(config(monitor={"deploy": AFTER}))
    assert measured.monitor_s > 0
    assert measured.epoch_s > measured.steps * measured.step_s + measured.evaluation_s


def test_an_estimate_does_not_scale_what_deploying_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that statistics come from are as many whatever the validation split has."""

    def deployments(*_: Any) -> list[Any]:
        time.sleep(0.2)
        return []

    monkeypatch.setattr(Evaluator, "deployments", deployments)
    found = cost.measure(config(monitor={"deploy": AFTER}, train__batch_size=10))
    assert 0.2 <= found.monitor_s < 2, "scaled by the 20 batches of the validation split it would be 4 s"


REFUSED = {
    "misspelt": ("bn_restimation", r"unknown deploy method 'bn_restimation'; did you mean 'bn_reestimation'\?"),
    "no deployment": ("lsq", r"method 'lsq' has no deployment of its own \(legal: rtn, adaround, any_precision"),
    "setting": ({**AFTER, "batchs": 3}, r"batchs: unknown key; did you mean 'batches'\? \(legal: batches, name\)"),
    "value": ({**AFTER, "batches": 0}, r"batches: 0: Input should be greater than or equal to 1"),
    "setting of rtn": ({"name": "rtn", "batches": 3}, r"rtn \(round-to-nearest\) has no settings, got batches"),
    "no name": ({"batches": 3}, r"unknown deploy method None"),
}


@pytest.mark.parametrize(("deploy", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_deploy_is_refused(deploy: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^monitor\.deploy: .*{said}"):
        monitored(deploy)


def test_a_method_that_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"monitor\.deploy: 'any_precision' prepares for a bit-width"):
        monitored("any_precision", target_bit=None, watch_bit=2, methods="none")
    with pytest.raises(UserError, match="method 'any_precision' needs normalization layers"):
        build(config(monitor={"deploy": "any_precision"}))
