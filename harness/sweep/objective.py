"""Objectives of a study: values of the validation split, computed from the results at each deployment point."""

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from harness.core.bits import BitWidths
from harness.core.errors import UserError, nearest
from harness.core.layer_points import LayerPoints, Written
from harness.records import schema

if TYPE_CHECKING:
    from harness.training.config import RunConfig

_AGGREGATES = ("target", "mean", "worst")
_METRIC = re.compile(r"^val/(?:acc|loss)_(.+)$")


def check(name: str, by_layer: Iterable[LayerPoints] = ()) -> str:
    """`name` itself, or a UserError that lists the legal objectives. by_layer: the sweep's points by layer."""
    named = sorted({key("val", point) for point in by_layer for key in (schema.accuracy, schema.loss)})
    if name in _AGGREGATES or _is_metric(name) or name in named:
        return name
    examples = (*_AGGREGATES, "val/acc_w2", "val/acc_float", "val/loss_w2", *named)
    further = f"; {', '.join(named)}" if named else ""
    raise UserError(
        f"objective {name!r} is unknown{nearest(name, examples)} (legal: {', '.join(_AGGREGATES)}, val/acc_w2 to "
        f"val/acc_w8, val/acc_w4a8 and such, val/acc_float; val/loss_w2 to val/loss_w8, val/loss_float{further})"
    )


def _is_metric(name: str) -> bool:
    found = _METRIC.match(name)
    try:
        return found is not None and BitWidths.of(found[1]).key == found[1]
    except UserError:
        return False


def direction(name: str) -> Literal["minimize", "maximize"]:
    """ "minimize" for losses, "maximize" for everything else."""
    return "minimize" if name.startswith("val/loss") else "maximize"


def value(name: str, metrics: Mapping[str, float], points: Sequence[Written], target: Written) -> float:
    """The objective from validation metrics (`val/acc_w3`: accuracy in [0, 1]).

    target: accuracy at the target (float accuracy for float training); mean and worst: over the deployment `points`.
    Raises UserError when a point it needs was not evaluated.
    """
    values = [metrics[key] for key in _keys(name, metrics, points, target)]
    return min(values) if name == "worst" else fmean(values)


def epoch_value(name: str, metrics: Mapping[str, float], config: "RunConfig") -> float:
    """The same of an epoch's metrics: mean and worst are over those deployment points that epochs are evaluated at.

    With a `monitor.deploy` that is the target alone. Raises UserError for what an epoch does not measure.
    """
    point, deploy = config.monitored_point, config.monitor.name
    if deploy == "rtn":
        return value(name, metrics, [each for each in config.deploy.points if each in config.epoch_points], point)
    keys = (schema.accuracy("val", point), schema.loss("val", point))
    here = {key: metrics[schema.after(key, deploy)] for key in keys}
    if name in ("mean", "worst") or (name != "target" and name not in here):
        raise UserError(f"objective {name!r}: after {deploy} an epoch is evaluated at the target alone")
    return value(name, here, [point], point)


def deploy_of(config: Mapping[str, Any]) -> str:
    """The deploy method after which a run is measured for its objective, by its record's configuration.

    Records of earlier versions do not name it: rtn.
    """
    return str(config.get("monitor", {}).get("deploy", {}).get("name", "rtn"))


def loss_at(name: str, metrics: Mapping[str, float], points: Sequence[Written], target: Written) -> float:
    """The validation loss (nats) at the point that an objective is about, for trials whose objective is equal.

    mean: over the deployment points. worst: where accuracy is lowest; of equally low ones, the highest loss.
    """
    keys = _keys(name, metrics, points, target)
    if name == "worst":
        keys = [key for key in keys if metrics[key] == min(metrics[other] for other in keys)]
    losses = [metrics[key.replace("/acc_", "/loss_")] for key in keys]
    return max(losses) if name == "worst" else fmean(losses)


def _keys(name: str, metrics: Mapping[str, float], points: Sequence[Written], target: Written) -> list[str]:
    """The metrics that an objective is made of. Raises UserError for one that was not evaluated."""
    if name == "target":
        name = schema.accuracy("val", target)
    wanted = [schema.accuracy("val", point) for point in points] if name in _AGGREGATES else [name]
    for key in wanted:
        if key not in metrics:
            raise UserError(f"objective {name!r}: {key} was not evaluated; add its bits to deploy.bits")
    if not wanted:
        raise UserError(f"objective {name!r}: none of the points of deploy.bits was evaluated")
    return wanted
