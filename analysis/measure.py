"""What a sweep measures, by the task of its data, and how figures and tables call it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.bits import PlainPoint
from harness.core.errors import UserError
from harness.core.metric import Metric
from harness.records.schema import score_of
from harness.tasks.base import DEFAULT, find, task_of

#: What readers of texts that name no metric take it to be.
_SEVERAL = "score"


def metric_of(config: Mapping[str, Any]) -> Metric:
    """The metric of a run's configuration. That of classification for a data set that this harness does not have."""
    try:
        return task_of(config["data"], config.get("tasks") or ()).metric
    except UserError:
        return find(DEFAULT).metric


def task_baseline(config: Mapping[str, Any]) -> str | None:
    """The name under which its records have rows of what needs no training; None without."""
    try:
        return task_of(config["data"], config.get("tasks") or ()).baseline or None
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


def direction(metric: Metric) -> str:
    """What is to be said of a metric that is not better where it is higher; else nothing."""
    return "" if metric.higher_is_better else "lower is better"


def full_label(metric: Metric, split: str = "Test") -> str:
    """`Test bits per character, lower is better`: `label`, with what is to be said of the direction."""
    return ", ".join(filter(None, (label(metric, split), direction(metric))))


def axis_label(metric: Metric, split: str = "Test", scale: str = "") -> str:
    """`Test accuracy (%)`, and on a second line that lower is better, and how the axis is scaled."""
    told = ", ".join(filter(None, (direction(metric), scale)))
    return label(metric, split) + (f"\n({told})" if told else "")


def shown(metric: Metric, value: float) -> float:
    """A value as figures and tables have it: accuracies in %."""
    return metric.scale * value


def margin(metric: Metric) -> float:
    """The difference that claims call close, as differences are shown: 1 point of accuracy, 0.1 dB."""
    return shown(metric, metric.margin)


def difference_unit(metric: Metric) -> str:
    """Of a difference of two values: points for %."""
    return "points" if metric.unit == "%" else metric.unit


def close(metric: Metric) -> str:
    """The margin as text: `1 point`, `0.1 dB`."""
    unit = difference_unit(metric)
    if margin(metric) == 1 and unit == "points":
        unit = "point"
    return f"{margin(metric):g} {unit}".rstrip()


def decimals(metric: Metric) -> int:
    """Of a value in a table: a tenth of the margin is its last place."""
    if not margin(metric) > 0:
        return metric.digits
    return max(0, 1 - math.floor(math.log10(margin(metric))))


def name_of(metrics: Iterable[Metric]) -> str:
    """The name of a metric, or what several have in common."""
    names = {metric.name for metric in metrics}
    return names.pop() if len(names) == 1 else _SEVERAL


def capital(text: str) -> str:
    """The same at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """The same as a sentence; nothing of nothing."""
    return f"{capital(text)}." if text else ""


def range_of(metric: Metric) -> tuple[float, float]:
    """The lowest and highest value there can be, as values are shown."""
    return float(shown(metric, metric.low)), float(shown(metric, metric.high))


def limits(metric: Metric) -> str:
    """`0 or 100 %`: what no value is beyond."""
    ends = [f"{shown(metric, end):g}" for end in (metric.low, metric.high) if math.isfinite(end)]
    return f"{' or '.join(ends)} {metric.unit}".rstrip() if ends else "what is possible"


def worded(text: str, metrics: Iterable[Metric]) -> str:
    """A title or caption with the words of what it is about in place of {metric}, {Metric}, {unit}, {limits}, {higher}
    (better), {lowest} (worst), {above} (better) and {inverse}; as it is where it is about no metric."""
    found = list(metrics)
    if not found:
        return text
    name, higher = name_of(found), found[0].higher_is_better
    return text.format(
        metric=name,
        Metric=capital(name),
        unit=f" ({found[0].unit})" if found[0].unit and name != _SEVERAL else "",
        limits=limits(found[0]),
        higher="higher" if higher else "lower",
        lowest="lowest" if higher else "highest",
        above="above" if higher else "below",
        inverse="" if higher else " (the inverse, since lower is better)",
    )
