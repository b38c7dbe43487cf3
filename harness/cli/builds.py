"""What a launch builds before anything starts: each distinct network, with its methods, on random samples."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import data
from harness.core.errors import BrokenError, MissingDataError, UserError
from harness.core.importing import why
from harness.core.layer_points import LayerPoints
from harness.core.outside import shown
from harness.sweep.cells import Cell, at_corners
from harness.sweep.config import SweepConfig
from harness.sweep.objective import AnyObjective, measured
from harness.sweep.reported import Objective, check_reported, known, numbers
from harness.training.config import RunConfig, component

if TYPE_CHECKING:  # imports torch
    from harness.training.session import Session

#: (C, H, W) of a data set's images, and its classes; of other tasks what `data.shape` says.
_Images = tuple[tuple[int, ...], int]
#: What stands in where they are not known.
_ANY: _Images = (3, 64, 64), 10
#: Errors of code, which are there whatever the shape and the samples are.
_OF_CODE = (NameError, AttributeError, ImportError, TypeError)
#: Words of messages about a device that this machine may lack and the nodes may have.
_OF_DEVICES = re.compile("cuda|cpu|gpu|nvidia|triton", re.IGNORECASE)


def check_builds(
    spec: SweepConfig, cells: Sequence[Cell], begin: Callable[[int], None] = lambda count: None, checked: bool = False
) -> list[str]:
    """Build each distinct network of a sweep once, with its methods and random weights. Imports torch.

    begin: gets their number before the first one. checked: whether the data have passed `check`. Returns what could
    not be checked, a line for each reason. Raises UserError for what a run would be refused for, and for what it would
    fail with, but for data: networks whose data are refused are built as if these were not there, or not at all.
    """
    of_data: dict[str, _Images | str] = {}
    distinct: dict[str, tuple[str, RunConfig, _Images | str]] = {}
    for cell in cells:
        for config in at_corners(spec, cell):
            name = json.dumps(config.data)
            images = of_data[name] = of_data[name] if name in of_data else _images(config.data, checked)
            points = config.evaluated_points
            activations = any(point.has_activations for point in points)
            deployed = [config.activations.model_dump(), config.target_bit] if activations else None
            by_layer = [point.plain for point in points if isinstance(point, LayerPoints)]
            cached = any(point.has_kv for point in points)
            methods = without_numbers(config.methods)
            key = json.dumps([config.model, images, config.exclude, methods, deployed, by_layer, cached])
            distinct.setdefault(key, (cell.id, config, images))
    begin(len(distinct))
    return _once_a_reason(note for each in distinct.values() for note in _check_build(*each, spec.objective))


def _once_a_reason(notes: Iterable[str]) -> list[str]:
    """Notes of cells, `cell ste,target_bit=2: why`, with the cells of the same reason in one: `cells a; b: why`."""
    cells: dict[str, dict[str, None]] = {}
    for note in notes:
        cell, _, reason = note.removeprefix("cell ").partition(": ")
        cells.setdefault(reason, {})[cell] = None  # several of its networks may have the same
    return [f"cell{'s' if len(names) > 1 else ''} {_shown([*names])}: {reason}" for reason, names in cells.items()]


def _shown(names: Sequence[str]) -> str:
    """`a; b; c and 4 more`: the ids of cells have commas in them."""
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _images(settings: dict[str, Any], checked: bool) -> _Images | str:
    """(C, H, W) and classes of a data set; in words why they are not known. A launch refuses such data by itself."""
    config = component("data set", settings)
    try:
        if not checked:  # before the shape: a text may be shorter than a window that takes minutes to build for
            data.check(config)
        return data.shape(config)
    except BrokenError:
        raise
    except MissingDataError:
        return "the data is not there"
    except UserError:
        return "the data cannot be used"


def without_numbers(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What decides whether methods can be built: hardly their strengths and rates, by which cells and trials differ."""
    return [{key: value for key, value in entry.items() if type(value) not in (int, float)} for entry in methods]


def _check_build(
    cell_id: str, config: RunConfig, images: _Images | str, objectives: Sequence[AnyObjective]
) -> list[str]:
    unknown = images if isinstance(images, str) else ""
    if unknown and config.task.name != "classification":  # there is no usual size of other inputs
        return [f"cell {cell_id}: {unknown}, and its network needs it"]
    from harness.quantization.slots import SlotTakenError
    from harness.training.trial_build import RandomSamplesError, try_build, try_model

    shape, classes = _ANY if isinstance(images, str) else images
    of_size = unknown and f"{unknown}, and for {'x'.join(map(str, shape))} images: "
    try:
        session = try_build(config, shape, classes)
        if any(isinstance(each, Objective) for each in objectives):
            metric = session.task.metric
            at_points = [name for point in config.evaluated_points for name in measured(metric, "val", point)]
            check_reported(objectives, _reported_by(session), at_points)
    except UserError as error:
        if unknown:
            try:
                try_model(config, shape, classes)
            except UserError as of_model:
                return [f"cell {cell_id}: {of_size}{of_model}"]
            except Exception as of_model:
                error = UserError(why(of_model)) if _is_sure(of_model, config, not unknown) else error
        names = [shown(entry["name"]) for entry in config.methods]
        where = f"methods {names}: " if isinstance(error, SlotTakenError) else ""
        raise UserError(f"cell {cell_id}: {where}{error}") from None
    except RandomSamplesError as error:
        said = f"cell {cell_id}: with two random samples in place of the data: {why(error.cause)}"
        return _refused_or_noted(said, isinstance(error.cause, _OF_CODE))
    except Exception as error:
        said = f"cell {cell_id}: {of_size}{why(error)}"
        return _refused_or_noted(said, _is_sure(error, config, not unknown))
    return []


def _is_sure(error: Exception, config: RunConfig, is_known: bool) -> bool:
    """Whether a run would end with the same error. No sample was read before it.

    Not sure of an error that may depend on the shape, unless it is known, or on the machine.
    """
    if isinstance(error, OSError | MemoryError):
        return False
    if config.runtime.device != "cpu" and _OF_DEVICES.search(str(error)):
        return False
    return is_known or isinstance(error, _OF_CODE)


def _refused_or_noted(said: str, is_sure: bool) -> list[str]:
    if is_sure:
        raise UserError(said)
    return [said]


def _reported_by(session: "Session") -> list[str]:
    """The metrics that a run of the session reports, besides those of single points."""
    from harness.oscillation.tracker import metrics_of

    found: dict[str, Any] = metrics_of(session.trackers)
    for method in session.methods:
        found |= method.metrics()
    return list(dict.fromkeys([*known(session.task.metric), *numbers(found)]))
