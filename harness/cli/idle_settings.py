"""Settings of a sweep's sampler and pruner that cannot act with its number of trials: legal, but not what was meant."""

import math
from collections.abc import Sequence
from typing import Any

from harness.sweep.algorithms import OPTIONS
from harness.sweep.cells import Cell, at_corners
from harness.sweep.config import Algorithm, SweepConfig
from harness.training.config import parse

#: The options that say how many trials of a cell come before the first one that a sampler models, or a pruner ends.
_FIRST = ("n_startup_trials", "population_size")
#: Those that say how many epochs of a trial come before a pruner may end it.
_EPOCHS = ("n_warmup_steps", "min_resource")


def notes(spec: SweepConfig, cells: Sequence[Cell]) -> list[str]:
    """A line for each setting that cannot act; none of a sampler that the sweep file does not name."""
    found = []
    if "pruner" in spec.model_fields_set:
        found.append(_pruner(spec, cells))
    if "sampler" in spec.model_fields_set:
        found += [_sampler(spec), _grid(spec, cells)]
    return [f"note: {text}" for text in found if text]


def _pruner(spec: SweepConfig, cells: Sequence[Cell]) -> str | None:
    pruner, trials, idle = spec.pruner, spec.tune.trials, f"pruner {spec.pruner.name!r} ends no trial early"
    if pruner.name == "none":
        return None
    option, first = _option("pruner", pruner, _FIRST)
    if option and trials <= first:
        return f"{idle}: its {option}, {first}, is not below tune.trials, {trials}"
    if trials <= 1:
        return f"{idle}: tune.trials is {trials}, and it compares trials of a cell"
    option, first = _option("pruner", pruner, _EPOCHS)
    if option and first > 1:  # with 1 only runs of one epoch have no early end, and they are for trying out
        longest = max(run.train.epochs for cell in cells for run in at_corners(spec, cell, parse))
        if longest <= first:
            return f"{idle}: its {option}, {first}, is not below train.epochs, {longest}"
    return None


def _sampler(spec: SweepConfig) -> str | None:
    option, first = _option("sampler", spec.sampler, _FIRST)
    if not option or not 0 < spec.tune.trials <= first:
        return None
    random = f"sampler {spec.sampler.name!r} draws every trial at random"
    return f"{random}: its {option}, {first}, is not below tune.trials, {spec.tune.trials}"


def _grid(spec: SweepConfig, cells: Sequence[Cell]) -> str | None:
    if spec.sampler.name != "grid":
        return None
    sizes = {cell.id: math.prod(len(space.points()) for space in cell.search.values()) for cell in cells if cell.search}
    small = {name: size for name, size in sizes.items() if size < spec.tune.trials}
    if not small:
        return None
    name, size = min(small.items(), key=lambda item: item[1])
    where = f"{name} has {size}" if len(small) == 1 else f"{len(small)} cells have fewer, {name} {size}"
    return f"sampler 'grid' repeats points: tune.trials is {spec.tune.trials}, and of grid points {where}"


def _option(kind: str, algorithm: Algorithm, names: Sequence[str]) -> tuple[str | None, int]:
    """Which of some options an algorithm has, and its value, given or by default; none where it is a word."""
    fields = OPTIONS[kind][algorithm.name].model_fields
    option = next((name for name in names if name in fields), None)
    value: Any = algorithm.options.get(option, fields[option].default) if option else 0
    return (option, int(value)) if not isinstance(value, str) else (None, 0)
