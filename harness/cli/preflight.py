"""What a launch checks before anything starts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from harness import data
from harness.data import TaskDataConfig
from harness.records.sweep_directory import SweepDirectory
from harness.records.wandb_names import check_project
from harness.sweep.cells import Cell, at_corners
from harness.sweep.config import SweepConfig
from harness.sweep.same_data import refuse_other
from harness.training.config import complete_but_methods, component, parse


def _data_configs(spec: SweepConfig, cells: Sequence[Cell]) -> list[TaskDataConfig]:
    seen: dict[str, TaskDataConfig] = {}
    for cell in cells:
        for config in at_corners(spec, cell, complete_but_methods):  # settings of data may be searched
            seen[repr(sorted(config.data.items()))] = component("data set", config.data)
    return list(seen.values())


def _first(cell: Cell) -> dict[str, object]:
    return {name: next(iter(dimension.points())) for name, dimension in cell.search.items()}


def check_wandb(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Refuse a project that W&B would refuse. Raises UserError."""
    for cell in cells:
        runtime = cell.config(_first(cell), spec.tune.seed, "tune", parse).runtime
        if runtime.wandb != "off":
            check_project(runtime.wandb_project)


def check_data(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Refuse data sets whose files are not where they should be. Raises UserError."""
    for config in _data_configs(spec, cells):
        data.check(config)


def prepare_data(spec: SweepConfig, cells: Sequence[Cell], folder: Path) -> None:
    """Decode and cache every data set once, before any worker starts. folder: the sweep's.

    Raises UserError for a damaged image, and for data that are not those of the sweep's earlier runs.
    """
    for config in _data_configs(spec, cells):
        found = data.prepare(config)
        refuse_other(SweepDirectory(folder), config, partial(getattr, found, "digest"))
