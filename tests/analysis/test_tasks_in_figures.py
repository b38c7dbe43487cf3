"""What figures and tables take from the task: labels, direction, the row of its baseline."""

from typing import Any

import pytest

from analysis import measure
from analysis.intervals import Interval, separate_best
from analysis.records import _rows_problem
from harness.tasks.base import find

PSNR = find("super_resolution").metric
CONFIG = {"data": {"name": "sample_images"}}


def row(**changes: Any) -> dict[str, Any]:
    found = {"phase": "final", "split": "test", "deploy": "rtn", "scale": "recalibrate", "bits": 3, "metric": "psnr"}
    return {**found, "score": 30.0, "loss": 0.1, "n": 1, "ssim": 0.5, **changes}


def test_labels_are_those_of_the_task() -> None:
    assert measure.label(measure.metric_of(CONFIG)) == "Test PSNR (dB)"
    assert measure.label(measure.metric_of({"data": {"name": "digits"}}), "validation") == "validation accuracy (%)"
    assert measure.label(measure.metric_of({"data": {"name": "gone"}})) == "Test accuracy (%)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"score": -1.0}, "PSNR -1.0 is not in [0, 100]"),
        ({"metric": "mae"}, "metric 'mae' is not 'psnr', that of its data"),
    ],
)
def test_rows_are_checked_against_the_metric(changes: dict[str, Any], said: str) -> None:
    assert _rows_problem([row(**changes)], "test", PSNR) == said
    assert _rows_problem([row()], "test", find("classification").metric).startswith("a row lacks some of")


def test_the_baseline_has_scores_of_its_own() -> None:
    rows = [row(), row(deploy="bicubic", bits="float", score=28.0)]
    assert measure.baseline_scores({"config": CONFIG, "rows": rows}) == ("bicubic", {"float": 28.0})
    assert measure.baseline_scores({"config": CONFIG, "rows": rows[:1]}) is None


def test_where_lower_is_better_the_lowest_is_best() -> None:
    means = [Interval(5.0, 0.5, 3), Interval(3.0, 0.5, 3), Interval(7.0, 0.5, 3)]
    assert (separate_best(means, higher_is_better=False), separate_best(means)) == (1, 2)
    assert separate_best([*means, Interval(3.2, 0.5, 3)], higher_is_better=False) is None
