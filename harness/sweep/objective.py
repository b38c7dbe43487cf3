"""Objectives of a study: values of the validation split, computed from the results at each bit-width."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from harness.core.bits import FLOAT, MAX_BITS, MIN_BITS
from harness.core.errors import UserError, nearest
from harness.records import schema

_AGGREGATES = ("target", "mean", "worst")
_METRIC = re.compile(rf"^val/(acc|loss)_(w[{MIN_BITS}-{MAX_BITS}]|{FLOAT})$")


def check(name: str) -> str:
    """`name` itself, or a UserError that lists the legal objectives."""
    if name in _AGGREGATES or _METRIC.match(name):
        return name
    examples = (*_AGGREGATES, "val/acc_w2", "val/acc_float", "val/loss_w2")
    raise UserError(
        f"objective {name!r} is unknown{nearest(name, examples)} (legal: {', '.join(_AGGREGATES)}, "
        "val/acc_w2 to val/acc_w8, val/acc_float, val/loss_w2 to val/loss_w8, val/loss_float)"
    )


def direction(name: str) -> Literal["minimize", "maximize"]:
    """ "minimize" for losses, "maximize" for everything else."""
    return "minimize" if name.startswith("val/loss") else "maximize"


def value(name: str, metrics: Mapping[str, float], bits: Sequence[int], target: int | str) -> float:
    """The objective from validation metrics (`val/acc_w3`: accuracy in [0, 1]).

    target: accuracy at the target bit (float accuracy for float training); mean and worst: over the deployment
    `bits`. Raises UserError when a bit-width it needs was not evaluated.
    """
    values = [metrics[key] for key in _keys(name, metrics, bits, target)]
    return min(values) if name == "worst" else fmean(values)


def loss_at(name: str, metrics: Mapping[str, float], bits: Sequence[int], target: int | str) -> float:
    """The validation loss (nats) at the point that an objective is about, for trials whose objective is equal.

    mean: over the deployment bits. worst: where accuracy is lowest; of equally low ones, the highest loss.
    """
    keys = _keys(name, metrics, bits, target)
    if name == "worst":
        keys = [key for key in keys if metrics[key] == min(metrics[other] for other in keys)]
    losses = [metrics[key.replace("/acc_", "/loss_")] for key in keys]
    return max(losses) if name == "worst" else fmean(losses)


def _keys(name: str, metrics: Mapping[str, float], bits: Sequence[int], target: int | str) -> list[str]:
    """The metrics that an objective is made of. Raises UserError for one that was not evaluated."""
    if name == "target":
        name = schema.accuracy("val", target)
    wanted = [schema.accuracy("val", bit) for bit in bits] if name in _AGGREGATES else [name]
    for key in wanted:
        if key not in metrics:
            raise UserError(f"objective {name!r}: {key} was not evaluated; add its bits to deploy.bits")
    return wanted
