"""What may change in a sweep that has run: it may grow, gain cells, and run elsewhere; nothing else."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import NUMERICS_VERSION
from harness.core import outside
from harness.core.dotted import flatten
from harness.core.errors import UserError
from harness.records.files import read_json
from harness.records.run_directory import RunDirectory
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.cells import Cell, expand
from harness.sweep.changed_cells import changed_in_cells, has_grown
from harness.sweep.config import SweepConfig, from_json, plain


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which a sweep differs from what it was, except for more trials and seeds.

    Trials may rise and seeds may be added; the label, workers, retries, the runtime section and data.root may change,
    and so may the storage: a queue that is not there is rebuilt from the records. A key that an older version did not
    write yet counts as its default.
    """
    free = (
        *("label", "workers", "runs_per_gpu", "max_retries", "max_lost", "changed_code", "storage"),
        *("base.runtime", "base.data.root", "base.data.download"),
    )
    flat_old, flat_new = dict(flatten(old)), dict(flatten(new))
    changed = []
    for key in sorted({*flat_old, *flat_new}):
        before, after = flat_old.get(key), flat_new.get(key)
        if before == after or any(key == name or key.startswith(f"{name}.") for name in free):
            continue
        if key == "tune.trials" and before and after and after > before:
            continue
        if key == "final.seeds" and set(before or ()) <= set(after or ()):
            continue
        changed += _places(key, before, after)
    return changed


def not_grown(changed: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Of the keys in which a sweep differs, those that may not: without cells and values of a grid that were added."""
    found: set[str] = set()
    for key in changed:
        section, _, name = key.split(" ")[0].partition(".")
        if section == "cells":
            found |= {*changed_in_cells(old.get("cells", ()), new["cells"])}
        elif section != "grid" or not has_grown(old.get("grid", {}).get(name), new["grid"].get(name)):
            found.add(key)
    return sorted(found)


def _places(key: str, before: Any, after: Any) -> list[str]:
    """Where two values of a key differ: in lists of sections, such as `cells`, by section, from 0, and key."""
    if not all(
        isinstance(each, list | tuple) and all(isinstance(it, Mapping) for it in each) for each in (before, after)
    ):
        return [key]
    found: list[str] = []
    lengths = f"{key} ({len(before)} then, {len(after)} now)"
    if len(before) > len(after) or (key != "cells" and len(before) != len(after)):
        return [lengths]
    for number, (old, new) in enumerate(zip(before, after)):
        one, other = dict(flatten(old)), dict(flatten(new))
        found += [f"{key}.{number}.{name}" for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return found or [key if len(before) == len(after) else lengths]


def settled(folder: Path, spec: SweepConfig) -> SweepConfig:
    """The sweep with `tie_break` as the folder's sweep has it, where its file does not name it.

    A sweep that an earlier version began would else choose other trials, or be refused, under the new default.
    """
    before = _written(folder)
    if before is None or "tie_break" not in before or "tie_break" in spec.model_fields_set:
        return spec
    return spec.model_copy(update={"tie_break": before["tie_break"]})


def check_change(folder: Path, spec: SweepConfig) -> None:
    """Raises UserError for a sweep that is not the one its folder holds, perhaps grown."""
    before, after = _written(folder), plain(spec)
    if before is None:
        return
    bare, edits = [_without_digests(each) for each in (before, after)], _edits(before, after)
    changed = changed_keys(*bare)
    refused = not_grown(changed, *bare)
    if edits:
        verb = "were" if len(edits) > 1 else "was"
        also = f"; it also differs in: {', '.join(refused)}" if refused else ""
        raise UserError(
            f"{folder}: {' and '.join(edits)} {verb} edited since the launch{also}. Give the edited sweep a name "
            f"(or --root) of its own, or put back what was launched, which {SweepDirectory(folder).components} keeps"
        )
    # Whether cells were only added does not depend on what else differs, such as a setting of base.
    if any(map(_is_of_cells, changed)) and added_cells({**before, "base": after["base"]}, spec) is not None:
        changed = [key for key in changed if not _is_of_cells(key)]
        if not changed:
            _refuse_workers(folder, "cells", "those of the launch")
    elif refused:
        changed = refused
    if changed and set(changed) <= {"tune.trials", "final.seeds"}:
        holds = f"tune.trials {before['tune']['trials']} and final.seeds {before['final']['seeds']}"
        raise UserError(f"{folder} has grown to {holds}, and a sweep cannot shrink; launch it with these")
    if changed:
        raise UserError(
            f"{folder} holds a sweep of this name that differs in: {', '.join(changed)}. Only tune.trials and "
            "final.seeds may grow, and cells may be added; give the edited sweep a name (or --root) of its own"
            f"{_further_rows(folder, changed)}"
        )
    if before["storage"] != after["storage"]:
        _refuse_workers(folder, "storage", repr(before["storage"]))


def added_cells(before: Mapping[str, Any] | None, spec: SweepConfig) -> list[str] | None:
    """The ids of a sweep's cells that it did not have, or None where one that it had is gone or another.

    before: its content as it was launched.
    """
    had, has = _cells_of(before, spec)
    return [name for name in has if name not in had] if had and had.items() <= has.items() else None


def kept_cells(before: Mapping[str, Any] | None, spec: SweepConfig) -> set[str]:
    """The ids of a sweep's cells that are as they were launched, which they have to stay. before: as in added_cells."""
    had, has = _cells_of(before, spec)
    return {name for name, content in had.items() if has.get(name) == content}


def _cells_of(before: Mapping[str, Any] | None, spec: SweepConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What decides a sweep's cells, by id, as it was launched and as it is; both empty where the first is not known."""
    if before is None:
        return {}, {}
    try:
        specs = (from_json(before), spec)
        had, has = ({cell.id: _what_decides(cell) for cell in expand(each, checked=False)} for each in specs)
    except ValueError:  # of a version whose files this one does not read
        return {}, {}
    return had, has


def _what_decides(cell: Cell) -> str:
    """All of a cell that may not change."""
    free = ("runtime.", "data.root", "data.download")
    kept = {key: value for key, value in flatten(cell.raw) if not f"{key}.".startswith(free)}
    return json.dumps([kept, {key: space.model_dump() for key, space in cell.search.items()}], default=str)


def _is_of_cells(key: str) -> bool:
    return key.split(" ")[0].split(".")[0] in ("cells", "grid")


def _refuse_workers(folder: Path, what: str, used: str) -> None:
    """Raise UserError while workers are at work that hold on to what was."""
    if workers := SweepDirectory(folder).living_workers():
        uses = "worker still uses" if len(workers) == 1 else "workers still use"
        raise UserError(f"{what}: {len(workers)} {uses} {used}; harness.cancel stops them")


def _further_rows(folder: Path, changed: Sequence[str]) -> str:
    """The way to rows of finished runs at other points, or by other deploy methods, which needs no other sweep."""
    if not set(changed) <= {"base.deploy.bits", "base.deploy.methods"}:
        return ""
    return f". Finished runs get further rows by: python -m harness.evaluate {folder} --bits ... --deploy ..."


def note_numerics(files: SweepDirectory) -> None:
    """Say where a sweep's records, of which one is read, have other numerics than the runs from now on will have."""
    records = (read_json(RunDirectory(path).record) for path in files.runs_named())
    first = next((record for record in records if record), None)
    found = first and first.get("provenance", {}).get("numerics_version")
    if found not in (None, NUMERICS_VERSION):
        print(
            f"the records of {files.path} have numerics version {found}, and runs from now on have {NUMERICS_VERSION}: "
            "figures refuse finals of both; under a --root of its own the sweep is run whole",
            file=sys.stderr,
            flush=True,
        )


def _without_digests(value: Any) -> Any:
    """Plain values with components from outside by module and attribute alone, whatever their content."""
    if isinstance(value, str):
        return value.partition("@")[0] if outside.is_name(value) else value
    if isinstance(value, Mapping):
        return {key: _without_digests(each) for key, each in value.items()}
    return [_without_digests(each) for each in value] if isinstance(value, list | tuple) else value


def _edits(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`nets/small_cnn.py`, `blocks.py, which nets/small_cnn.py imports,`: what has other content than it had."""
    launched = {_without_digests(name): name for name in outside.names_in(before)}
    named = [(launched.get(_without_digests(name)), name) for name in outside.names_in(after)]
    return list(dict.fromkeys(_edit(old, new) for old, new in named if old not in (None, new)))


def _edit(old: str | None, new: str) -> str:
    was, now = outside.find(old or ""), outside.find(new)
    assert now is not None, "the sweep file was read"
    if was is None or was.source != now.source:
        return str(now.path)
    beside = [f"{name}.py" for name, _ in sorted({*was.beside} ^ {*now.beside})]
    return f"{', '.join(dict.fromkeys(beside))}, which {now.path} imports,"


def _written(folder: Path) -> dict[str, Any] | None:
    """The sweep a folder holds, with defaults for keys that an older version did not have."""
    raw = read_json(SweepDirectory(folder).sweep)
    outside.look_in(SweepDirectory(folder).components)
    try:
        return None if raw is None else plain(from_json(raw))
    except ValidationError:  # written by a version whose files this one does not read: the keys will differ
        return dict(raw)
