"""What a launch checks before anything starts."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import data
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.core.outside import shown
from harness.records.wandb_names import check_project
from harness.sweep.cells import Cell, at_corners
from harness.sweep.config import SweepConfig
from harness.sweep.objective import AnyObjective
from harness.sweep.reported import Objective, check_reported, known, numbers
from harness.training.config import RunConfig, complete_but_methods, component, parse

if TYPE_CHECKING:  # imports torch
    from harness.training.session import Session


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


#: (C, H, W) of a data set's images, and its classes; of other tasks what `data.shape` says.
_Images = tuple[tuple[int, ...], int]
#: What stands in where the data is not there.
_ANY: _Images = (3, 64, 64), 10


def check_builds(spec: SweepConfig, cells: Sequence[Cell]) -> list[str]:
    """Build each distinct network of a sweep once, with its methods and random weights. Imports torch.

    Returns what could not be checked, a line each. Raises UserError for what a run would be refused for.
    """
    of_data: dict[str, _Images | None] = {}
    tried: set[str] = set()
    notes: list[str] = []
    for cell in cells:
        for config in at_corners(spec, cell):
            name = json.dumps(config.data)
            images = of_data[name] = of_data[name] if name in of_data else _images(config.data)
            points = config.evaluated_points
            activations = any(point.has_activations for point in points)
            deployed = [config.activations.model_dump(), config.target_bit] if activations else None
            by_layer = [point.plain for point in points if isinstance(point, LayerPoints)]
            cached = any(point.has_kv for point in points)
            methods = without_numbers(config.methods)
            key = json.dumps([config.model, images, config.exclude, methods, deployed, by_layer, cached])
            if key not in tried:
                tried.add(key)
                notes += _check_build(cell.id, config, images, spec.objective)
    return notes


def _images(settings: dict[str, Any]) -> _Images | None:
    """(C, H, W) and classes of a data set; None where it is not there."""
    try:
        return data.shape(component("data set", settings))
    except UserError:  # a launch refuses it by itself
        return None


def without_numbers(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What decides whether methods can be built: hardly their strengths and rates, by which cells and trials differ."""
    return [{key: value for key, value in entry.items() if type(value) not in (int, float)} for entry in methods]


def _check_build(
    cell_id: str, config: RunConfig, images: _Images | None, objectives: Sequence[AnyObjective]
) -> list[str]:
    from harness.quantization.slots import SlotTakenError
    from harness.training.trial_build import try_build, try_model

    shape, classes = images or _ANY
    try:
        session = try_build(config, shape, classes)
        if any(isinstance(each, Objective) for each in objectives):
            check_reported(objectives, _reported_by(session))
    except UserError as error:
        if images is None:
            try:
                try_model(config, shape, classes)
            except UserError as of_model:
                size = "x".join(map(str, shape))
                return [f"cell {cell_id}: the data is not there, and for {size} images: {of_model}"]
        names = [shown(entry["name"]) for entry in config.methods]
        where = f"methods {names}: " if isinstance(error, SlotTakenError) else ""
        raise UserError(f"cell {cell_id}: {where}{error}") from None
    except Exception as error:  # random images may not do for a method: only a run can tell
        return [f"cell {cell_id}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
    return []


def _reported_by(session: "Session") -> list[str]:
    """The metrics that a run of the session reports, besides those of single points."""
    from harness.oscillation.tracker import metrics_of

    found: dict[str, Any] = metrics_of(session.trackers)
    for method in session.methods:
        found |= method.metrics()
    return list(dict.fromkeys([*known(session.task.metric), *numbers(found)]))


def prepare_data(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Decode and cache every data set once, before any worker starts. Raises UserError for a damaged image."""
    for config in _data_configs(spec, cells):
        data.prepare(config)  # type: ignore[arg-type]
