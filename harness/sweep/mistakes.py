"""All that is wrong with a sweep file at once, as far as one mistake does not hide another. Free of torch.

`read_checked` reads and checks a file strictly. Only where that refuses it are its other mistakes looked for: what is
wrong is noted and taken out, and the rest is checked in the same order: the file, names in `base`, each cell without
its components, then settings of data sets and networks.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from harness.core import registry
from harness.core.errors import UserError, several
from harness.sweep import cells as of_cells
from harness.sweep import levels
from harness.sweep.cells import Cell, assign, distinct, expand
from harness.sweep.components import located_sweep
from harness.sweep.config import CellConfig, SweepConfig, read_sweep
from harness.sweep.content import content
from harness.sweep.repair import legal_base, legal_part, take_out
from harness.sweep.search_space import corners
from harness.training.config import complete_but_methods, parse

#: What may be wrong only because something else was taken out.
_FOLLOWS = re.compile(
    r"^base\.\w+: missing|: target_bit is missing|was not evaluated|none of the points|is a value, not a sec"
)


def read_checked(path: Path, replaced: Iterable[str] = ()) -> tuple[SweepConfig, list[Cell]]:
    """The sweep in a file, with `key=value` overrides, and its cells, all checked but methods.

    Raises UserError: the one mistake, or a line for each.
    """
    try:
        spec = read_sweep(path, replaced)
        cells = expand(spec, checked=False)
        of_cells.check_all_but_methods(spec, cells)
    except UserError as error:
        found = _all_mistakes(path, replaced)
        raise (several(found, str(path)) if len(found) > 1 else _with_hints(error, f"{path}: ")) from None
    return spec, cells


def _with_hints(error: UserError, begins: str) -> UserError:
    """The error that says of a key of another level where it belongs; the same one where it names none."""
    text = str(error)
    start = begins if text.startswith(begins) else ""
    said = start + levels.hinted(text.removeprefix(start))
    return error if said == text else UserError(said)


def _all_mistakes(path: Path, replaced: Iterable[str]) -> list[str]:
    """A line for each; none where the file is no YAML, or names files that are not there, which hides all else."""
    try:
        raw = located_sweep(content(path, replaced), path)
    except UserError:
        return []
    spec, found, names = legal_part(raw)
    if spec is None:
        return found
    spec, in_base = legal_base(spec)
    found += in_base
    for _ in range(3):  # what is wrong in base hides other mistakes of a cell
        of_all = _of_cells(spec, names, components=not in_base)
        found += of_all
        base = deepcopy(spec.base)
        if not [line for line in of_all if line.startswith("base.") and take_out(base, line)]:
            break
        spec = spec.model_copy(update={"base": base})
    return distinct([line for line in found if not _FOLLOWS.search(line)] or found)


def _of_cells(spec: SweepConfig, names: dict[int, str], components: bool) -> list[str]:
    """What is wrong in each cell. names: of cells whose methods are. components: whether to check their settings."""
    found: list[str] = []
    good = []
    for cell in _legal_cells(spec, names, found):
        known = _known_keys(cell, found)
        wrong = [line for params in corners(known.search) for line in _wrong(spec, known, params)]
        if known.search == cell.search:
            wrong += _lines(lambda cell=known: of_cells.check_search(spec, cell))  # type: ignore[misc]
        found += wrong
        good += [] if wrong else [known]
    for cell in good if components else ():
        found += [line for params in corners(cell.search) for line in _told(spec, cell, params, _complete)]
    return _once(found)


def _legal_cells(spec: SweepConfig, names: dict[int, str], found: list[str]) -> list[Cell]:
    """The cells of a sweep, without keys of grid and set that no run has, which are added to `found`."""
    cells = []
    for number, config in enumerate(spec.cells):
        every = spec.grid | config.grid
        grid = {key: values for key, values in every.items() if _is_legal(number, config, key, found)}
        kept = {key: value for key, value in config.set.items() if _is_legal(number, config, key, found)}
        config = config.model_copy(update={"set": kept})
        for point in product(*grid.values()):
            try:
                cell = of_cells.cell_of(spec, number, config, dict(zip(grid, point, strict=True)))
            except UserError as error:
                found.append(str(error))
                continue
            named = names.get(number)
            cells.append(replace(cell, id=named + cell.id.removeprefix("none")) if named else cell)
    if not cells and any(not values for each in spec.cells for values in (spec.grid | each.grid).values()):
        found.append(of_cells.NO_CELLS)
    same = [name for name, times in Counter(cell.id for cell in cells).items() if times > 1]
    found += [of_cells.SAME_CELLS % name for name in same[:1]]
    return cells


def _is_legal(number: int, config: CellConfig, key: str, found: list[str]) -> bool:
    """Whether an entry of `cells`, by its place there, may have a dotted key, by its first part."""
    try:
        assign({"methods": [dict(entry) for entry in config.methods]}, key, None)
    except UserError as error:
        found.append(str(of_cells.placed(error, key, number, config)))
        return False
    return True


def _known_keys(cell: Cell, found: list[str]) -> Cell:
    """The cell without searched keys that it does not have, which are added to `found`."""
    kept = {}
    for key, space in cell.search.items():
        try:
            assign(deepcopy(dict(cell.raw)), key, next(iter(space.points())))
            kept[key] = space
        except UserError as error:
            found.append(f"cell {cell.id}: {error}")
    return replace(cell, search=kept)


def _wrong(spec: SweepConfig, cell: Cell, params: Mapping[str, Any]) -> list[str]:
    """What is wrong with a cell's settings, and with what its trials go by, without its components."""
    lines = _told(spec, cell, params, parse)
    if lines:
        return lines
    return _lines(lambda: of_cells.check_objective(spec, cell.config(params, spec.tune.seed, "tune", parse)))


def _told(spec: SweepConfig, cell: Cell, params: Mapping[str, Any], check: Callable[[Any], object]) -> list[str]:
    """The lines of what a check refuses, each with where it is from: `base.train.epochs: ...`, `cell ste: ...`."""
    lines = _lines(lambda: check(cell.raw_with(params, spec.tune.seed, "tune")))
    return [levels.hinted(f"base.{line}" if cell.is_of_base(line) else f"cell {cell.id}: {line}") for line in lines]


def _lines(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except UserError as error:
        return str(error).splitlines()
    return []


def _complete(raw: Mapping[str, Any]) -> object:
    """Check settings of data set and network, unless that runs code of the user's or imports torch."""
    for kind, key in (("data set", "data"), ("model", "model")):
        if registry.shown(str(raw[key]["name"])) not in registry.names(kind):
            return None
    return complete_but_methods(raw)


def _once(lines: Iterable[str]) -> list[str]:
    """Lines without those about a setting of the same cell that another value of its search is refused for, too.

    Of a key of the grid of all cells the first is kept: what is legal beside it differs between cells.
    """
    found: dict[str, str] = {}
    for line in lines:
        where, _, rest = line.partition(": ")
        found.setdefault(f"{where}: {rest.partition(': ')[0]}" if where.startswith(("cell ", "grid.")) else line, line)
    return list(found.values())
