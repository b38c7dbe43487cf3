"""Several sweeps as one: the groups of the same model on the same data, where their runs were made alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.grouping import make_groups
from analysis.results import Cell, SweepResults
from analysis.series import Group
from harness.core.errors import UserError


def joint(
    sweeps: Sequence[SweepResults], groups: Mapping[str, Sequence[Group]]
) -> tuple[SweepResults | None, list[str]]:
    """The sweeps as one, of each model and data set that several have, or None; and why some of these are not in it.

    groups: those of each sweep, by its name. Runs stay as they are; a cell's grid gets its sweep, which tells cells of
    one label apart.
    """
    parts, reasons = [], []
    for title in dict.fromkeys(group.title for own in groups.values() for group in own):
        having = [sweep for sweep in sweeps if any(group.title == title for group in groups[sweep.name])]
        if len(having) < 2:
            continue
        try:
            parts.append(_joined(title, having, groups))
        except UserError as error:
            reasons.append(str(error))
    if not parts:
        return None, reasons
    names = [sweep.name for sweep in sweeps if any(sweep.name in part.parts for part in parts)]
    whole = SweepResults("+".join(names), [], objective=parts[0].objective, parts=tuple(names))
    for field in ("cells", "finals", "trials", "pruned", "missing", "corrupt", "incomplete", "notes"):
        getattr(whole, field).extend({id(each): each for part in parts for each in getattr(part, field)}.values())
    return whole, reasons


def _joined(title: str, sweeps: Sequence[SweepResults], groups: Mapping[str, Sequence[Group]]) -> SweepResults:
    """Raises UserError that says what differs."""
    names = tuple(sweep.name for sweep in sweeps)
    name = "+".join(names)
    _refuse_other_tuning(f"{title} ({name})", sweeps)
    whole = SweepResults(name, [], objective=sweeps[0].objective, parts=names)
    for sweep in sweeps:
        runs = {final.run_id for group in groups[sweep.name] if group.title == title for final in group.finals}
        cells = {cell.id: _of_sweep(cell, sweep.name) for cell in sweep.cells if runs & set(cell.finals.values())}
        whole.cells += cells.values()
        whole.finals += [replace(f, cell=cells[f.cell.id]) for f in sweep.finals if f.cell.id in cells]
        whole.trials += [replace(t, cell=cells[t.cell.id]) for t in sweep.trials if t.cell.id in cells]
        whole.pruned += [replace(p, cell=cells[p.cell].id) for p in sweep.pruned if p.cell in cells]
        whole.missing += [m for m in sweep.missing if m.cell in cells]
        whole.corrupt += sweep.corrupt
        whole.incomplete += sweep.incomplete
        whole.notes += sweep.notes
    make_groups(whole)  # refuses what was not made alike
    return whole


def _of_sweep(cell: Cell, sweep: str) -> Cell:
    return replace(cell, id=f"{sweep}:{cell.id}", grid={"sweep": sweep, **cell.grid})


def _refuse_other_tuning(title: str, sweeps: Sequence[SweepResults]) -> None:
    """What the settings were chosen for, and from how many trials, is part of how runs were made."""
    first = sweeps[0]
    for other in sweeps[1:]:
        for what, one, another in (
            ("objective", list(first.objective), list(other.objective)),
            ("trials a cell", _budget(first), _budget(other)),
        ):
            if one != another:
                raise UserError(
                    f"{title}: not compared: {what} is {one} in sweep {first.name} but {another} in {other.name}"
                )


def _budget(sweep: SweepResults) -> list[int]:
    return sorted({cell.planned_trials or 0 for cell in sweep.cells})
