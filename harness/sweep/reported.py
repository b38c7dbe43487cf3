"""Objectives that state their direction: any metric that a run reports, or a function of all of them.

A function is named by its file, `score.py:balance`, and kept beside the sweep as components from outside are: its name
in sweep.json has the digest of the file, so that an edited one is another objective.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.core import outside
from harness.core.config_base import StrictConfig
from harness.core.errors import UserError, nearest
from harness.core.metric import Metric
from harness.records import schema

#: What every run reports at the end of an epoch, besides what it evaluates and what its methods report.
_ALWAYS = (
    schema.FREQUENCY,
    schema.OSCILLATING_FRACTION,
    schema.FLIPS_PER_WEIGHT,
    schema.OSCILLATIONS_PER_WEIGHT,
    schema.THRESHOLD_DISTANCE,
    schema.TRAIN_LOSS,
    schema.TRAIN_PENALTY,
    schema.LEARNING_RATE,
    schema.MONITOR,
)
#: For messages about files and functions.
_KIND = "objective"
#: The groups of metrics of which all names are known before a network is built.
_GROUPS = ("osc", "train", "val", "test")


class Objective(StrictConfig):
    """An objective whose direction does not follow from its name."""

    name: str = Field(
        description="a metric that runs report (osc/frequency, val/loss_w3, ...), or FILE.py:FUNCTION of all metrics"
    )
    direction: Literal["minimize", "maximize"] = Field(description="which values are better")

    @property
    def is_function(self) -> bool:
        """Whether it is computed by a function of the user's."""
        return outside.is_name(self.name)

    def value(self, metrics: Mapping[str, float]) -> float:
        """The objective from a run's metrics, or from those of an epoch. Raises UserError where it cannot be had."""
        if self.is_function:
            return _called(self.name, metrics)
        if self.name not in metrics:
            what = "the run did not report it as a finite number"
            raise UserError(f"objective {self.name!r}: {what}{_there(self.name, metrics)}")
        return float(metrics[self.name])


def located(objectives: Any, base: Path) -> Any:
    """What a sweep file has as its objectives, with functions by names that hold a digest of their file.

    base: the folder that paths are relative to. Raises UserError for a file or function that is not there.
    """
    if isinstance(objectives, list | tuple):
        return [located(each, base) for each in objectives]
    if isinstance(objectives, str):
        if outside.is_reference(objectives):
            entry = f"{{name: '{objectives}', direction: minimize}}"
            raise UserError(f"objective {objectives!r}: which values are better? Write {entry}, or maximize")
        return objectives
    name = objectives.get("name") if isinstance(objectives, Mapping) else None
    if not isinstance(name, str) or not outside.is_reference(name):
        return objectives
    found = outside.resolve(_KIND, name, base)
    _function(found)
    return {**objectives, "name": found}


def _function(name: str) -> Any:
    """What a name by content names. Raises UserError for what cannot be called, or is a whole file."""
    if ":" not in name:
        raise UserError(f"objective {name!r} is a file: name a function in it, as FILE.py:FUNCTION")
    found = outside.load(_KIND, name)
    if not callable(found):
        raise UserError(f"objective {name!r}: {found!r} is no function of metrics")
    return found


def _called(name: str, metrics: Mapping[str, float]) -> float:
    """A function's value for a run. Raises UserError, which fails the trial, for all but a finite number."""
    function = _function(name)
    try:
        value = function(dict(metrics))
        number = float(value)
    except KeyError as error:
        key = error.args[0] if error.args else None
        if not isinstance(key, str) or key in metrics:
            raise UserError(f"objective {name!r}: KeyError: {error}") from error
        raise UserError(f"objective {name!r}: KeyError: no metric {key!r}{_there(key, metrics)}") from error
    except Exception as error:  # a function of the user's may fail in any way
        raise UserError(f"objective {name!r}: {type(error).__name__}: {error}") from error
    if not math.isfinite(number):
        raise UserError(f"objective {name!r}: its value is {value!r}, which is no finite number")
    return number


def known(metric: Metric) -> list[str]:
    """The metrics that every run of a task reports, besides those of single points."""
    return [*_ALWAYS, schema.worst(metric, "val"), schema.spread(metric, "val")]


def may_be(name: str, metric: Metric) -> bool:
    """Whether a run may report a metric; those of methods and layers are known once its network is built."""
    group, slash, _ = name.partition("/")
    return name in known(metric) or bool(slash and group not in _GROUPS)


def check_reported(objectives: Iterable[str | Objective], names: Iterable[str], at_points: Iterable[str] = ()) -> None:
    """Raise UserError for an objective that no run reports, or a function that reads what none reports.

    at_points: the metrics of single points, which functions get, too.
    """
    found = list(names)
    for each in objectives:
        if isinstance(each, Objective) and each.is_function:
            _check_keys(each.name, [*found, *at_points])
        elif isinstance(each, Objective) and each.name not in found:
            raise UserError(f"objective {each.name!r}: its runs do not report that{_there(each.name, found)}")


def _check_keys(name: str, found: Sequence[str]) -> None:
    """Refuse a function that reads a metric which is not there. Its values here are made up: no other error counts."""
    try:
        _function(name)(dict.fromkeys(found, 0.5))
    except KeyError as error:
        key = error.args[0] if error.args else None
        if isinstance(key, str) and key not in found:
            raise UserError(f"objective {name!r}: its runs do not report {key!r}{_there(key, found)}") from None
    except Exception:
        return


def _there(name: str, found: Iterable[str]) -> str:
    """The nearest metric to a name that is none, and all but those of single layers."""
    found = list(found)
    listed = ", ".join(each for each in found if not each.startswith(schema.LAYER_PREFIX))
    return f"{nearest(name, found)} (reported: {listed})"


def metrics_of_run(
    record: Mapping[str, Any], epochs: Iterable[Mapping[str, Any]], metric: Metric, deploy: str
) -> dict[str, float]:
    """What a finished run reported of the network that it keeps: its rows, and the numbers of its best epoch.

    epochs: the lines of metrics.jsonl. deploy: the deploy method whose rows count.
    """
    best = next((each for each in epochs if each[schema.EPOCH] == record["best_epoch"]), {})
    return {**numbers(best), **schema.as_metrics(record["rows"], metric, deploy)}


def numbers(epoch: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's metrics that are numbers: not a histogram, nor the epoch itself."""
    return {name: value for name, value in epoch.items() if isinstance(value, int | float) and name != schema.EPOCH}
