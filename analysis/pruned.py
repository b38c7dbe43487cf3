"""What a tuning trial that the pruner stopped had reported: its last epoch, the objective and the scores there."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from analysis.measure import metric_of, shown
from analysis.results import PrunedTrial
from harness.core.bits import FLOAT, BitWidths, PlainPoint
from harness.core.errors import UserError
from harness.records import schema
from harness.sweep import objective


class Reported(NamedTuple):
    """Of the last epoch: its number, the objective (accuracy in [0, 1]), validation scores by point (accuracy in %).

    All empty where no epoch was kept; scores only of points that epochs are evaluated at.
    """

    epoch: int | None = None
    value: float | None = None
    scores: Mapping[PlainPoint, float] = {}
    #: Whether all deployment points are among the scores.
    complete: bool = False


def last(trial: PrunedTrial, name: str) -> Reported:
    """What a trial had reported when it was stopped. name: of the objective, the first of several."""
    epochs, _ = trial.epochs()
    if not epochs:
        return Reported()
    epoch = max(epochs)
    line = {key: value for key, value in epochs[epoch].items() if _is_number(value)}
    if not trial.config:  # an epoch's monitor is the objective "target"
        return Reported(epoch, line.get(schema.MONITOR) if name == "target" else None)
    metric, written = metric_of(trial.config), trial.config["deploy"]["bits"]
    plain = [BitWidths.of(point) for point in written if isinstance(point, int | str)]
    names = {point: schema.score(metric, "val", point) for point in (*plain, BitWidths.of(FLOAT))}
    deploy = objective.deploy_of(trial.config)
    scores = {point.plain: line.get(schema.after(name, deploy), line.get(name)) for point, name in names.items()}
    known = {point: shown(metric, value) for point, value in scores.items() if value is not None}
    return Reported(epoch, _value(name, line, trial.config), known, len(known) == len(written) + 1)


def _value(name: str, line: Mapping[str, float], config: Mapping[str, Any]) -> float | None:
    """The objective as the pruner was told it; None where the epoch does not tell it."""
    if name in line:
        return line[name]
    metric, suffix = metric_of(config), schema.after("", objective.deploy_of(config))
    here = {key.removesuffix(suffix): value for key, value in line.items() if key.endswith(suffix)}
    points = [each for each in config["deploy"]["bits"] if schema.score(metric, "val", each) in here]
    try:
        return objective.value(name, here, points, config.get("target_bit") or FLOAT, metric)
    except (UserError, KeyError, ValueError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
