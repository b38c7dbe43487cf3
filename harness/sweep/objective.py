"""Objectives of a study: values of the validation split, computed from the results at each deployment point."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from harness.core import registry
from harness.core.bits import BitWidths
from harness.core.errors import UserError, nearest
from harness.core.layer_points import LayerPoints, Written
from harness.core.metric import Metric
from harness.records import schema
from harness.sweep import reported
from harness.sweep.reported import Objective
from harness.tasks.base import find

if TYPE_CHECKING:
    from harness.training.config import RunConfig

#: As a sweep file has it: a name whose direction is known, or a name with its direction.
AnyObjective = str | Objective
#: Objectives over points or at the target, by name.
AGGREGATES = ("target", "mean", "worst")
_METRIC = re.compile(r"^val/([a-z0-9]+)_(.+)$")


def check(
    name: AnyObjective, metric: Metric, by_layer: Iterable[LayerPoints] = (), further: Iterable[str] = ()
) -> AnyObjective:
    """The objective itself, by its name alone where that is enough, or a UserError that lists the legal ones.

    by_layer: the sweep's points by layer. further: keys of figures that the task could measure, too.
    """
    named = sorted({key for point in by_layer for key in measured(metric, "val", point)})
    plain = name if isinstance(name, str) else name.name
    if plain in AGGREGATES or _is_metric(plain, metric) or plain in named:
        if isinstance(name, Objective) and name.direction != (own := direction(plain, metric)):
            raise UserError(f"objective {plain!r}: direction: {name.direction!r} (legal: {own}, which is its own)")
        return plain
    if reported.may_be(plain, metric) or (isinstance(name, Objective) and name.is_function):
        if isinstance(name, Objective):
            return name
        raise UserError(
            f"objective {name!r}: which values are better? Write {{name: {name}, direction: minimize}}, or maximize"
        )
    if (found := _METRIC.match(plain)) and found[1] in further:
        raise UserError(f"objective {plain!r}: no run measures {found[1]}; set deploy.figures: [{found[1]}]")
    keys = [each.key for each in (metric, *metric.beside)]
    examples = (*AGGREGATES, *(f"val/{each}_{at}" for each in keys for at in ("w2", "float")), "val/loss_w2", *named)
    more = f"; {', '.join(named)}" if named else ""
    legal = ", ".join(f"val/{key}_w2 to val/{key}_w8, val/{key}_w4a8 and such, val/{key}_float" for key in keys)
    raise UserError(
        f"objective {plain!r} is unknown{_nearest(plain, keys, [*examples, *reported.known(metric)])} (legal: "
        f"{', '.join(AGGREGATES)}, {legal}; val/loss_w2 to val/loss_w8, val/loss_float{more}; with a direction: "
        f"{', '.join(reported.known(metric))}, and what methods report)"
    )


def _nearest(name: str, keys: Sequence[str], legal: Iterable[str]) -> str:
    """As `nearest`, at the bit-width that is meant where the name ends with one.

    keys: of the figures that the task measures, its metric first, which is meant by the name of another task's figure.
    """
    at = name.rpartition("_")[2]
    found = _METRIC.match(name)
    if found and _is_point(at) and found[1] not in keys and found[1] in _all_keys():
        return f"; did you mean 'val/{keys[0]}_{at}'?"
    there = [f"val/{key}_{at}" for key in (*keys, "loss")] if _is_point(at) else []
    return nearest(name, there) or nearest(name, legal)


def _all_keys() -> set[str]:
    """The keys of what any task here measures."""
    tasks = [find(name) for name in registry.names("task")]
    return {each.key for task in tasks for each in (task.metric, *task.metric.beside, *task.further)}


def measured(metric: Metric, split: str, point: Written) -> list[str]:
    """The names of all that an evaluation at a point gives."""
    return [*(schema.score(each, split, point) for each in (metric, *metric.beside)), schema.loss(split, point)]


def figure_of(name: str, metric: Metric) -> Metric | None:
    """The figure that an objective is of; None for a loss, or for what the task does not measure."""
    if name in AGGREGATES:
        return metric
    found = _METRIC.match(name)
    return next((each for each in (metric, *metric.beside) if found and each.key == found[1]), None)


def shown(values: Iterable[float], names: Iterable[str], metric: Metric) -> str:
    """Objectives in the unit of the test scores where they are of a figure of the task: `94.30 %`; else a number."""
    figures = (figure_of(name, metric) for name in names)
    return " ".join(f"{value:.4f}" if each is None else each.shown(value) for value, each in zip(values, figures))


def _is_metric(name: str, metric: Metric) -> bool:
    found = _METRIC.match(name)
    if found is None or (found[1] != "loss" and figure_of(name, metric) is None):
        return False
    return _is_point(found[2])


def _is_point(text: str) -> bool:
    try:
        return BitWidths.of(text).key == text
    except UserError:
        return False


def direction(name: AnyObjective, metric: Metric) -> Literal["minimize", "maximize"]:
    """The one that is stated; else "minimize" for losses, and that of the figure."""
    if isinstance(name, Objective):
        return name.direction
    figure = figure_of(name, metric)
    return figure.direction if figure else "minimize"


def value(
    name: AnyObjective, metrics: Mapping[str, float], points: Sequence[Written], target: Written, metric: Metric
) -> float:
    """The objective from validation metrics (`val/acc_w3`: accuracy in [0, 1]).

    target: the metric at the target (in float for float training); mean and worst: over the deployment `points`, worst
    in the metric's own direction. Raises UserError when a point it needs was not evaluated.
    """
    if isinstance(name, Objective):
        return name.value(metrics)
    values = [metrics[key] for key in _keys(name, metrics, points, target, metric)]
    return metric.worst(values) if name == "worst" else fmean(values)


def epoch_value(name: AnyObjective, metrics: Mapping[str, float], config: "RunConfig") -> float:
    """The same of an epoch's metrics: mean and worst are over those deployment points that epochs are evaluated at.

    With a `monitor.deploy` that is the target alone. Raises UserError for what an epoch does not measure.
    """
    if isinstance(name, Objective):
        return name.value(reported.numbers(metrics))
    point, deploy, metric = config.monitored_point, config.monitor.name, config.task.metric
    if deploy == "rtn":
        points = [each for each in config.deploy.points if each in config.epoch_points]
        return value(name, metrics, points, point, metric)
    keys = (schema.score(metric, "val", point), schema.loss("val", point))
    here = {key: metrics[schema.after(key, deploy)] for key in keys}
    if name in ("mean", "worst") or (name != "target" and name not in here):
        raise UserError(f"objective {name!r}: after {deploy} an epoch is evaluated at the target alone")
    return value(name, here, [point], point, metric)


def deploy_of(config: Mapping[str, Any]) -> str:
    """The deploy method after which a run is measured for its objective, by its record's configuration.

    Records of earlier versions do not name it: rtn.
    """
    return str(config.get("monitor", {}).get("deploy", {}).get("name", "rtn"))


def loss_at(
    name: AnyObjective, metrics: Mapping[str, float], points: Sequence[Written], target: Written, metric: Metric
) -> float:
    """The validation loss at the point that an objective is about, for trials whose objective is equal.

    mean: over the deployment points. worst: where the metric is worst; of equally bad ones, the highest loss. Of an
    objective with a direction of its own: at the target.
    """
    name = "target" if isinstance(name, Objective) else name
    keys = _keys(name, metrics, points, target, metric)
    if name == "worst":
        worst = metric.worst([metrics[key] for key in keys])
        keys = [key for key in keys if metrics[key] == worst]
    losses = [metrics[re.sub("/[a-z0-9]+_", "/loss_", key, count=1)] for key in keys]
    return max(losses) if name == "worst" else fmean(losses)


def _keys(
    name: str, metrics: Mapping[str, float], points: Sequence[Written], target: Written, metric: Metric
) -> list[str]:
    """The metrics that an objective is made of. Raises UserError for one that was not evaluated."""
    if name == "target":
        name = schema.score(metric, "val", target)
    wanted = [schema.score(metric, "val", point) for point in points] if name in AGGREGATES else [name]
    for key in wanted:
        if key not in metrics:
            measured_keys = ("loss", metric.key, *(each.key for each in metric.beside))
            found = _METRIC.match(key)
            figure = found[1] if found else ""
            where = f"{figure} to deploy.figures" if figure not in ("", *measured_keys) else "its bits to deploy.bits"
            raise UserError(f"objective {name!r}: {key} was not evaluated; add {where}")
    if not wanted:
        raise UserError(f"objective {name!r}: none of the points of deploy.bits was evaluated")
    return wanted
