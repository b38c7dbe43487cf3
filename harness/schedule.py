"""When in a training things happen: the learning rate over its steps, the first epoch that can be best."""

import math
from collections.abc import Iterable

from harness.config import TrainKnobs
from harness.methods.base import Method


def first_eligible_epoch(knobs: TrainKnobs, methods: Iterable[Method]) -> int:
    """The first epoch (from 1) that can be best: later than 1 for methods that train in stages."""
    start = max((method.selection_start for method in methods), default=0.0)
    # 0.29 of 100 epochs are 29, though not in binary; an epoch that ends where a stage begins is not of it.
    return min(knobs.epochs, math.floor(start * knobs.epochs + 1e-9) + 1)


def learning_rate_factor(step: int, total: int, steps_per_epoch: int, knobs: TrainKnobs) -> float:
    """The factor of the base learning rate at a step: linear warm-up from 1/warm-up, then the schedule to 0."""
    warmup = min(round(knobs.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return (step + 1) / warmup
    if knobs.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
