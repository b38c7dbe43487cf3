"""What a launch checks before anything starts."""

from collections.abc import Sequence

from harness import data
from harness.records.wandb_names import check_project
from harness.sweep.cells import Cell
from harness.sweep.config import SweepConfig
from harness.training.config import complete_but_methods, component, parse


def _data_configs(spec: SweepConfig, cells: Sequence[Cell]) -> list[object]:
    seen: dict[str, object] = {}
    for cell in cells:
        settings = cell.config(_first(cell), spec.tune.seed, "tune", complete_but_methods).data
        seen[repr(sorted(settings.items()))] = component("data set", settings)
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
        data.check(config)  # type: ignore[arg-type]


def prepare_data(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Decode and cache every data set once, before any worker starts. Raises UserError for a damaged image."""
    for config in _data_configs(spec, cells):
        data.prepare(config)  # type: ignore[arg-type]
