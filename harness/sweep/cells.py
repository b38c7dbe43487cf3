"""The cells of a sweep: one study for each method stack and grid point."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from harness.core import registry
from harness.core.bits import BitWidths
from harness.core.config_base import by_name
from harness.core.errors import UserError, several
from harness.core.layer_points import AnyPoint, point_of
from harness.core.outside import shown
from harness.records import schema
from harness.sweep import levels, objective
from harness.sweep.config import CellConfig, SweepConfig
from harness.sweep.content import NOT_SET
from harness.sweep.search_space import Space, corners
from harness.training.config import RunConfig, complete, complete_but_methods, parse

#: A setting in a message: `train.epochs`, or `activations` of a run.
_SETTING = re.compile(r"[a-z_]+(\.\w+)*")
NO_CELLS = "grid: an empty list of values leaves no run at all; name at least one value a key"
SAME_CELLS = "cells: two of them are %s; let grid or set tell them apart"
#: Checks settings and fills in defaults: `parse`, `complete_but_methods` or `complete`.
Check = Callable[[Mapping[str, Any]], RunConfig]


@dataclass(frozen=True)
class Cell:
    """One study: a method stack at one grid point. `raw` lacks only searched values, seed and phase."""

    id: str
    raw: Mapping[str, Any]
    grid: Mapping[str, Any]
    set: Mapping[str, Any]
    search: Space

    @property
    def measured_after(self) -> str:
        """The deploy method after which its runs are measured to choose among them (`monitor.deploy`)."""
        return shown(str(by_name(self.raw.get("monitor", {}).get("deploy", "rtn"))["name"]))

    def config(self, params: Mapping[str, Any], seed: int, phase: str, check: Check = complete) -> RunConfig:
        """The configuration of a run of this cell, as `check` completes it. Raises UserError for an illegal value."""
        try:
            return check(self.raw_with(params, seed, phase))
        except UserError as error:
            lines = str(error).splitlines()
            in_base = all(self.is_of_base(line) for line in lines)
            said = "\n".join(f"base.{line}" for line in lines) if in_base else f"cell {self.id}: {error}"
            raise UserError(levels.hinted(said)) from None

    def raw_with(self, params: Mapping[str, Any], seed: int, phase: str) -> dict[str, Any]:
        """The settings of a run of this cell, legal or not. Raises UserError for a key that it does not have."""
        raw = deepcopy(dict(self.raw))
        for key, value in params.items():
            assign(raw, key, value)
        return {**raw, "seed": seed, "phase": phase}

    def is_of_base(self, line: str) -> bool:
        """Whether a message is about a setting that all cells share: none that the cell names itself."""
        place = line.partition(": ")[0]
        own = ("methods", *self.grid, *self.set, *self.search)
        is_own = any(f"{key}.".startswith(f"{place}.") or f"{place}.".startswith(f"{key}.") for key in own)
        return bool(_SETTING.fullmatch(place)) and not is_own


def assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of run settings: `train.learning_rate`, `target_bit`, or `<method>.<setting>`.

    Raises UserError when its first part is neither a section nor a method of the stack.
    """
    head, _, rest = key.partition(".")
    entries = {shown(entry["name"]): entry for entry in raw.get("methods", ())}
    if rest and head in entries:
        entries[head][rest] = value
        return
    legal = [name for name in RunConfig.model_fields if name not in NOT_SET]
    if head not in legal:
        if rest and head in registry.names("method"):
            names = ", ".join(sorted([*legal, *entries]))
            raise UserError(f"{key}: unknown setting {head!r}: this cell has no such method (legal: {names})")
        raise levels.unknown_setting(head, [*legal, *entries])
    parts = key.split(".")
    for part in parts[:-1]:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"{key}: {part} is a value, not a section")
    raw[parts[-1]] = value


def expand(spec: SweepConfig, checked: bool = True) -> list[Cell]:
    """The cells of a sweep, in file order. Raises UserError for cells that are illegal or the same.

    checked: whether to check each cell's settings, which imports torch. A sweep that was launched has been checked.
    """
    cells: list[Cell] = []
    for number, config in enumerate(spec.cells):
        grid = spec.grid | config.grid
        for point in itertools.product(*grid.values()):
            cells.append(cell_of(spec, number, config, dict(zip(grid, point, strict=True))))
    if not cells:
        raise UserError(NO_CELLS)
    for cell_id, times in Counter(cell.id for cell in cells).items():
        if times > 1:
            raise UserError(SAME_CELLS % cell_id)
    if checked:
        check_all_but_methods(spec, cells)
        check_methods(spec, cells)
    return cells


def cell_of(spec: SweepConfig, number: int, config: CellConfig, point: dict[str, Any]) -> Cell:
    """The cell of an entry at one point of its grid. Raises UserError for keys that it does not have, or has twice.

    number: the place of the entry in `cells`.
    """
    if twice := [key for key, times in Counter([*point, *config.set, *config.search]).items() if times > 1]:
        names = ", ".join(sorted(twice))
        raise UserError(f"cells.{number}: {names} is in two of grid, set and search; name it in one")
    raw = deepcopy(spec.base)
    raw["methods"] = [dict(entry) for entry in config.methods]
    parts = ["+".join(shown(entry["name"]) for entry in config.methods)]
    for key, value in (point | config.set).items():
        if key == "target_bit":
            with suppress(UserError):  # what is illegal is refused when the cell is checked
                value = BitWidths.of(value).plain  # one name for the cell, however it is written
        try:
            assign(raw, key, deepcopy(value))
        except UserError as error:
            raise placed(error, key, number, config) from None
        if key == "deploy.bits":
            with suppress(UserError, TypeError):
                value = [str(point_of(each)) for each in value]
        parts.append(f"{key}={_label(value)}")
    return Cell(",".join(parts), raw, point, dict(config.set), dict(config.search))


def placed(error: UserError, key: str, number: int, config: CellConfig) -> UserError:
    """What is wrong with a key of an entry's grid or set, with its place in the file: `cells.1.set.epochs: ...`."""
    said = str(error).removeprefix(f"{key}: ")
    part = "set" if key in config.set else "grid"
    if key in getattr(config, part):
        return UserError(f"cells.{number}.{part}.{key}: {said}")
    return UserError(f"grid.{key}: {said.replace('this cell', f'cells.{number}')}")  # of the grid of all cells


def _label(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(shown(str(value[key])) for key in sorted(value, key=lambda key: (key != "name", key)))
    if isinstance(value, list | tuple):
        return "-".join(shown(str(each)) for each in value)
    return shown(str(value))


def check_all_but_methods(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Check all that needs no torch, in every cell: what each names, then settings of data sets and models.

    Raises UserError. Imports torch for timm's models only.
    """
    for cell in cells:
        for config in at_corners(spec, cell, parse):
            check_objective(spec, config)
        check_search(spec, cell)
    for cell in cells:
        at_corners(spec, cell, complete_but_methods)


def check_methods(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Check the settings of methods in every cell, and how the methods fit each other. Imports torch.

    Raises UserError: the one mistake, or a line for the first of each cell.
    """
    refused: list[UserError] = []
    for cell in cells:
        try:
            at_corners(spec, cell, complete)
        except UserError as error:
            refused.append(error)
    found = distinct(map(str, refused))
    if found:
        raise several(found, f"sweep {spec.name}") if len(found) > 1 else refused[0]


def distinct(mistakes: Iterable[str]) -> list[str]:
    """Without those that another cell has as well: the cells of a grid share what is wrong with their entry."""
    found: dict[str, str] = {}
    for each in mistakes:
        found.setdefault(each.partition(": ")[2] if each.startswith("cell ") else each, each)
    return list(found.values())


def at_corners(spec: SweepConfig, cell: Cell, check: Check = complete) -> list[RunConfig]:
    """A cell's trials at the extremes and inside of what it searches, as `check` completes them."""
    return [cell.config(params, spec.tune.seed, "tune", check) for params in corners(cell.search)]


def check_objective(spec: SweepConfig, config: RunConfig) -> None:
    """Raises UserError for an objective, or a pruner, that goes by what a run does not evaluate."""
    for goal in spec.objective:
        if isinstance(goal, str):  # what others report is known once networks are built
            there = _zeros(config, config.evaluated_points)
            objective.value(goal, there, config.deploy.points, config.monitored_point, config.task.metric)
    if spec.pruner.name != "none" and isinstance(spec.objective[0], str):
        try:
            objective.epoch_value(spec.objective[0], dict.fromkeys(of_epoch(config), 0.0), config)
        except UserError as error:
            why = (
                ""
                if config.monitor.name != "rtn"
                else "; at points with activations an epoch is evaluated only at the target"
            )
            raise UserError(f"{error}{why}, so set pruner to none or choose another objective") from None


def of_epoch(config: RunConfig) -> list[str]:
    """The names of what every epoch measures of the validation split."""
    return [*_zeros(config, config.epoch_points), *_zeros(config, [config.monitored_point], config.monitor.name)]


def _zeros(config: RunConfig, points: Sequence[AnyPoint], deploy: str = "rtn") -> dict[str, float]:
    """What an evaluation at these points gives, by metric."""
    names = [name for point in points for name in objective.measured(config.task.metric, "val", point)]
    return {schema.after(name, deploy): 0.0 for name in names}


def check_search(spec: SweepConfig, cell: Cell) -> None:
    """Raises UserError for what a cell searches that does not fit the number of trials, or cannot be compared."""
    if spec.tune.trials > 1 and not cell.search:
        raise UserError(
            f"cell {cell.id}: nothing to search, but every cell has {spec.tune.trials} trials; give it a dimension "
            "(search: {train.learning_rate: ...}), or set tune.trials to 0"
        )
    if spec.tune.trials == 0 and cell.search:
        raise UserError(f"cell {cell.id}: search needs tune.trials of at least 1")
    if monitored := [key for key in cell.search if key.partition(".")[0] == "monitor"]:
        raise UserError(
            f"cell {cell.id}: search: {monitored[0]} decides how trials are measured, so trials could not be compared; "
            "write it in set or grid"
        )
    if "target_bit" in cell.search and "target" in spec.objective:
        raise UserError(
            f"cell {cell.id}: {spec.metric.name} at the target bit cannot compare trials of different target_bit; "
            f"set objective to mean, worst or a metric such as val/{spec.metric.key}_w3"
        )
