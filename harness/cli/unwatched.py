"""Bit-widths that cells train for and at which no float training's oscillations are counted: legal, and said."""

from collections.abc import Collection, Sequence
from pathlib import Path

from harness.records.files import read_json
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.cells import Cell, at_corners
from harness.sweep.changes import kept_cells
from harness.sweep.config import SweepConfig
from harness.training.config import RunConfig, parse


def of_sweep(spec: SweepConfig, cells: Sequence[Cell], folder: Path) -> list[str]:
    """The line of `notes` for a sweep whose folder this is, launched or not."""
    return notes(spec, cells, kept_cells(read_json(SweepDirectory(folder).sweep), spec))


def notes(spec: SweepConfig, cells: Sequence[Cell], kept: Collection[str] = ()) -> list[str]:
    """A line where target bits are not among `watch_bit` and `also_watch` of float cells; none without float cells.

    kept: the ids of cells that were launched as they are, and may no longer change.
    """
    runs = {cell.id: at_corners(spec, cell, parse) for cell in cells}
    targets = {each.watch_bit for of_cell in runs.values() for each in of_cell if each.target and each.watch_bit}
    floats = {name: of_cell for name, of_cell in runs.items() if all(each.target is None for each in of_cell)}
    watched = {bits for of_cell in floats.values() for each in of_cell for bits in _watched(each)}
    missing = sorted(targets - watched)
    if not floats or not missing:
        return []
    name = next((each for each in floats if each not in kept), next(iter(floats)))
    wanted = sorted({*floats[name][0].also_watch, *missing})
    how = f"set: {{also_watch: {wanted}}} there counts them"
    if name in kept:
        further = f", also_watch: {missing[1:]}" if missing[1:] else ""
        how = (
            f"it was launched so; a further cell counts them: methods: none, set: {{watch_bit: {missing[0]}{further}}}"
        )
    at = ", ".join(map(str, missing))
    where = f"oscillations of float training are not counted at {at} bits, for which other cells train"
    return [f"note: cell {name}: {where}; {how}"]


def _watched(config: RunConfig) -> list[int]:
    return [bits for bits in (config.watch_bit, *config.also_watch) if bits is not None]
