"""Components from outside in a sweep file: where it names them, and their names by content."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.outside import shown
from harness.sweep import reported
from harness.tasks.base import Task, task_of
from harness.training.components import located


def located_sweep(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The plain content of the sweep file `path`, with components from outside by their names.

    Raises UserError for what is not there, and for two components that tables and figures could not tell apart.
    """
    try:
        return _located(raw, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _located(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    found = dict(raw)
    if "objective" in raw:
        found["objective"] = reported.located(raw["objective"], base)
    for key in ("base", "grid"):
        if isinstance(raw.get(key), dict):
            found[key] = located(raw[key], base)
    if isinstance(raw.get("cells"), list):
        found["cells"] = [_cell(cell, base) if isinstance(cell, dict) else cell for cell in raw["cells"]]
    for one, other in combinations(outside.names_in(found), 2):
        if shown(one) == shown(other):
            raise UserError(f"components {one} and {other} would both be called {shown(one)!r}; rename one")
    return found


def tasks_of(data_sets: Iterable[str], written: Iterable[Any]) -> dict[str, Task]:
    """The task of each data set, by the name that is shown; of those that are known.

    written: what the file has for `tasks`, names or lists of them.
    """
    further = [each for value in written for each in (value if isinstance(value, list | tuple) else [value])]
    own = [name for name in further if _is_known("task", name)]
    names = [name for name in dict.fromkeys(data_sets) if _is_known("data set", name)]
    return {shown(name): task_of({"name": name}, own) for name in names}


def _is_known(kind: str, name: str) -> bool:
    return name in registry.names(kind) or outside.is_name(name)


def _cell(cell: dict[str, Any], base: Path) -> dict[str, Any]:
    varied = {key: located(cell[key], base) for key in ("set", "grid", "search") if isinstance(cell.get(key), dict)}
    return {**located(cell, base), **varied}
