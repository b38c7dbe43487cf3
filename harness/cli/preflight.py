"""What a launch checks before anything starts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import data
from harness.core.errors import UserError
from harness.sweep.cells import Cell
from harness.sweep.config import SweepConfig
from harness.training.config import RunConfig, complete_but_methods, component

if TYPE_CHECKING:
    from torch import nn


def _data_configs(spec: SweepConfig, cells: Sequence[Cell]) -> list[object]:
    seen: dict[str, object] = {}
    for cell in cells:
        settings = cell.config(_first(cell), spec.tune.seed, "tune", complete_but_methods).data
        seen[repr(sorted(settings.items()))] = component("data set", settings)
    return list(seen.values())


def _first(cell: Cell) -> dict[str, object]:
    return {name: next(iter(dimension.points())) for name, dimension in cell.search.items()}


def check_data(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Refuse data sets whose files are not where they should be. Raises UserError."""
    for config in _data_configs(spec, cells):
        data.check(config)  # type: ignore[arg-type]


def check_stacks(cells: Sequence[Cell], seed: int) -> None:
    """Refuse methods whose model lacks a requirement, and stacks whose methods fill the same slot.

    Imports torch. Raises UserError.
    """
    from harness.methods import find

    for cell in cells:
        names = [entry["name"] for entry in cell.raw["methods"]]
        required = {name: found for name in names if (found := find(name).requires)}
        if len(names) > 1 or required:
            config = cell.config(_first(cell), seed, "tune")
            _check_stack(cell.id, config, _model_for(cell.id, config, required) if required else None)


#: Images (C, H, W) and classes of a model that is built only to check its layers.
_ANY_IMAGES, _ANY_CLASSES = (3, 64, 64), 10


def _model_for(cell_id: str, config: RunConfig, required: dict[str, tuple[str, ...]]) -> "nn.Module | None":
    """The cell's model with random weights, for images of any size; None if it cannot be built like that.

    Raises UserError when it lacks what methods require.
    """
    from harness.methods._requirements import check_requirements
    from harness.models import build_model

    model_config = component("model", {**config.model, "init": "scratch"})
    try:
        model = build_model(model_config, _ANY_IMAGES, _ANY_CLASSES, config.seed)
    except UserError:  # it may need its own image size; then it is checked when a run builds it
        return None
    try:
        check_requirements(model, model_config.name, required)
    except UserError as error:
        raise UserError(f"cell {cell_id}: {error}") from None
    return model


def _check_stack(cell_id: str, config: RunConfig, model: "nn.Module | None") -> None:
    """Let the methods of a stack prepare the model, or one linear layer, in turn."""
    import torch

    from harness.methods import build_stack
    from harness.methods.base import Calibration, Context
    from harness.quantization.slots import SlotTakenError

    shape = _ANY_IMAGES if model else (4,)
    model = model or torch.nn.Sequential(torch.nn.Linear(4, 4))
    batch = (torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
    try:
        methods = build_stack(config.methods, Context(target_bit=config.target_bit or 2))
        for method in methods:
            method.prepare(model, Calibration(lambda index: batch))
        for method in methods:
            method.prepared(model)
    except SlotTakenError as error:
        names = [entry["name"] for entry in config.methods]
        raise UserError(f"cell {cell_id}: methods {names}: {error}") from None
    except Exception:  # a method may need more than one layer; only clashes count here
        return


def prepare_data(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Decode and cache every data set once, before any worker starts. Raises UserError for a damaged image."""
    for config in _data_configs(spec, cells):
        data.prepare(config)  # type: ignore[arg-type]
