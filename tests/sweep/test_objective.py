"""Objectives: names, directions, values."""

import pytest

from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.sweep import objective
from harness.tasks.classification import ACCURACY
from harness.tasks.super_resolution import PSNR

METRICS = {"val/acc_w2": 0.5, "val/acc_w3": 0.25, "val/acc_w4": 0.75, "val/acc_float": 1.0, "val/loss_w2": 3.5}


@pytest.mark.parametrize(
    ("name", "target", "value"),
    [
        ("target", 3, 0.25),
        ("target", "float", 1.0),
        ("mean", 3, 0.5),
        ("worst", 2, 0.25),
        ("val/acc_w4", 2, 0.75),
        ("val/acc_float", 2, 1.0),
        ("val/loss_w2", 3, 3.5),
    ],
)
def test_values(name: str, target: int | str, value: float) -> None:
    assert objective.value(name, METRICS, [2, 3, 4], target, ACCURACY) == value


def test_mean_and_worst_look_at_the_deployment_bits_alone() -> None:
    assert objective.value("mean", METRICS, [2, 4], 3, ACCURACY) == 0.625
    assert objective.value("worst", METRICS, [2, 4], 3, ACCURACY) == 0.5


def test_directions() -> None:
    assert {objective.direction(name, ACCURACY) for name in ("target", "mean", "worst", "val/acc_w2")} == {"maximize"}
    assert {objective.direction(name, ACCURACY) for name in ("val/loss_w2", "val/loss_float")} == {"minimize"}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("val/accuracy_w3", "val/acc_w3"),
        ("val/accuracy_float", "val/acc_float"),
        ("val/los_w4a8", "val/loss_w4a8"),
        ("test/acc_w5", "val/acc_w5"),
        ("val/acc_w9", "val/acc_w2"),
    ],
)
def test_the_nearest_spelling_is_at_the_bit_width_that_is_meant(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is unknown; did you mean '{near}'"):
        objective.check(name, ACCURACY)


@pytest.mark.parametrize(
    ("name", "metric", "meant"),
    [
        ("val/acc_w3", PSNR, "val/psnr_w3"),
        ("val/bacc_float", PSNR, "val/psnr_float"),
        ("val/ssim_w4a8", ACCURACY, "val/acc_w4a8"),
        ("val/sim_w3", PSNR, "val/ssim_w3"),
    ],
)
def test_the_figure_of_another_task_means_the_metric(name: str, metric: Metric, meant: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is unknown; did you mean '{meant}'"):
        objective.check(name, metric)


@pytest.mark.parametrize("name", ["target", "mean", "worst", "val/acc_w2", "val/acc_w8", "val/loss_float"])
def test_legal_names(name: str) -> None:
    assert objective.check(name, ACCURACY) == name


@pytest.mark.parametrize(
    "name", ["val/acc_w1", "val/acc_w9", "val/acc_w22", "test/acc_w2", "acc_w2", "Mean", "", "val/acc"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^objective '.*' is unknown.*legal: target, mean, worst, val/acc_w2"):
        objective.check(name, ACCURACY)


@pytest.mark.parametrize(
    ("name", "key"), [("val/acc_w7", "val/acc_w7"), ("mean", "val/acc_w8"), ("target", "val/acc_w5")]
)
def test_a_figure_that_was_not_evaluated_is_named(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} was not evaluated"):
        objective.value(name, METRICS, [2, 8], 5, ACCURACY)
