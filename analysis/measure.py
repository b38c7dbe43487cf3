"""What a sweep measures, by the task of its data, and how figures and tables call it."""

from collections.abc import Mapping
from typing import Any

from harness.core.bits import PlainPoint
from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.records.schema import score_of
from harness.tasks.base import DEFAULT, find, task_of


def metric_of(config: Mapping[str, Any]) -> Metric:
    """The metric of a run's configuration. That of classification for a data set that this harness does not have."""
    try:
        return task_of(config["data"]).metric
    except UserError:
        return find(DEFAULT).metric


def task_baseline(config: Mapping[str, Any]) -> str | None:
    """The name under which its records have rows of what needs no training; None without."""
    try:
        return task_of(config["data"]).baseline or None
    except UserError:
        return None


def baseline_scores(record: Mapping[str, Any]) -> tuple[str, dict[PlainPoint, float]] | None:
    """Its name, and its test scores by point as they are shown; None without."""
    name, metric = task_baseline(record["config"]), metric_of(record["config"])
    rows = [row for row in record["rows"] if name and (row["deploy"], row["split"]) == (name, "test")]
    return (name, {row["bits"]: shown(metric, score_of(row)) for row in rows}) if name and rows else None


def label(metric: Metric, split: str = "Test") -> str:
    """`Test accuracy (%)`, `Test PSNR (dB)`: of an axis or a table."""
    return f"{split} {metric.name}" + (f" ({metric.unit})" if metric.unit else "")


def shown(metric: Metric, value: float) -> float:
    """A value as figures and tables have it: accuracies in %."""
    return metric.scale * value
