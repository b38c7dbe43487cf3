"""A sweep file of three kinds of cells, as mappings: float training, a grid of targets, a stack with a setting."""

from copy import deepcopy
from typing import Any

from harness.sweep.config import SweepConfig

RAW: dict[str, Any] = {
    "name": "s",
    "base": {
        "data": {"name": "digits"},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 4], "scale": "recalibrate"},
    },
    "cells": [
        {"methods": "none", "set": {"watch_bit": 2}, "search": {"train.learning_rate": [0.001, 0.01]}},
        {"methods": "ste", "grid": {"target_bit": [2, 3]}, "search": {"train.learning_rate": [0.001, 0.01]}},
        {
            "methods": ["ste", {"name": "oscillation", "strength": 2.0}],
            "set": {"target_bit": 4},
            "search": {"oscillation.strength": {"low": 1, "high": 3}},
        },
    ],
    "tune": {"trials": 2},
    "final": {"seeds": [0, 1]},
}


def spec(**changes: Any) -> SweepConfig:
    """The same with other values of whole keys."""
    return SweepConfig.model_validate({**deepcopy(RAW), **changes})
