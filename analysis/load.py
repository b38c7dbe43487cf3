"""Read a sweep from disk: cells.json names the finals, and only those are opened."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError, unknown
from harness.schema import EPOCH, FLOAT, ROW

_RECORD = {"run_id": str, "phase": str, "config": dict, "provenance": dict, "rows": list}
_CONFIG = {"seed": int, "methods": list, "model": dict, "data": dict, "train": dict, "deploy": dict}


@dataclass(frozen=True)
class Cell:
    """One cell of the sweep: a method stack at one grid point."""

    id: str
    methods: tuple[str, ...]
    grid: dict[str, Any]
    seeds: tuple[int, ...]
    chosen: dict[str, Any] | None
    finals: dict[int, str]
    failed: tuple[Any, ...]


@dataclass(frozen=True)
class Final:
    """One finished final run of a cell."""

    cell: Cell
    seed: int
    run_id: str
    record: dict[str, Any] = field(repr=False)
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]


@dataclass(frozen=True)
class Missing:
    """A seed of a cell that the sweep promises and the disk does not hold."""

    cell: str
    seed: int
    reason: str


@dataclass
class Sweep:
    """What analysis works on."""

    name: str
    folder: Path
    cells: list[Cell]
    finals: list[Final] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sweep_names(root: Path) -> list[str]:
    """The folders of `root` that hold a cells.json."""
    names = sorted(path.parent.name for path in root.glob("*/cells.json"))
    if not names:
        what = "no folder in it holds a cells.json" if root.is_dir() else "there is no such folder"
        raise UserError(f"--root {str(root)!r} holds no sweep: {what} (default: 'runs')")
    return names


def load_sweep(root: Path, name: str) -> Sweep:
    """Read the cells and the finals they name; what is absent or unreadable is listed, not hidden."""
    names = sweep_names(root)
    if name not in names:
        raise unknown("sweep", name, names)
    folder = root / name
    sweep = Sweep(name, folder, _read_cells(folder / "cells.json"))
    for cell in sweep.cells:
        for seed in cell.seeds:
            _load_final(sweep, cell, seed)
    if not sweep.finals:
        raise UserError(f"sweep {name!r} has no finished finals yet ({_progress(sweep)}); nothing to draw")
    return sweep


def _progress(sweep: Sweep) -> str:
    tuned = sum(cell.chosen is not None for cell in sweep.cells)
    corrupt = f", {len(sweep.corrupt)} corrupt records: {'; '.join(sweep.corrupt)}" if sweep.corrupt else ""
    return f"{tuned} of {len(sweep.cells)} cells tuned{corrupt}"


def _read_cells(path: Path) -> list[Cell]:
    try:
        cells = [_cell(raw) for raw in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    return cells


def _cell(raw: dict[str, Any]) -> Cell:
    return Cell(
        id=raw["id"],
        methods=tuple(raw["methods"]),
        grid=flatten(raw["grid"]),
        seeds=tuple(int(seed) for seed in raw["seeds"]),
        chosen=raw["chosen"],
        finals={int(seed): str(run_id) for seed, run_id in (raw["finals"] or {}).items()},
        failed=tuple(raw.get("failed") or ()),
    )


def _load_final(sweep: Sweep, cell: Cell, seed: int) -> None:
    """Add the final of `seed` to `sweep.finals`, or the reason why there is none to `sweep.missing`."""
    run_id = cell.finals.get(seed)
    folder = sweep.folder / "runs" / str(run_id)
    failed = {str(value) for entry in cell.failed for value in _identifiers(entry)}
    if run_id is not None and (folder / "record.json").exists():
        record, problem = _read_record(folder / "record.json", run_id, seed)
        if record is not None:
            sweep.finals.append(Final(cell, seed, run_id, record, folder))
            return
        reason = "corrupt record"
        if (line := f"{folder / 'record.json'}: {problem}") not in sweep.corrupt:
            sweep.corrupt.append(line)
    elif failed & {str(seed), str(run_id)}:
        reason = "failed"
    elif run_id is None:
        reason = "tuning not finished" if cell.chosen is None else "no final yet"
    else:
        reason = "final not finished"
    sweep.missing.append(Missing(cell.id, seed, reason))


def _identifiers(entry: Any) -> Iterable[Any]:
    """A failed final is named by its run id or its seed, alone or as fields of an object."""
    return (entry.get("seed"), entry.get("run_id")) if isinstance(entry, dict) else (entry,)


def _read_record(path: Path, run_id: str, seed: int) -> tuple[dict[str, Any] | None, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return None, f"unreadable ({error})"
    problem = _problem(record, run_id, seed)
    return (None, problem) if problem else (record, "")


def _problem(record: Any, run_id: str, seed: int) -> str:
    """What is wrong with a record, or nothing."""
    if not isinstance(record, dict):
        return "not an object"
    for fields, part, where in ((_RECORD, record, ""), (_CONFIG, record.get("config"), "config.")):
        for name, kind in fields.items():
            if not isinstance(part, dict) or not isinstance(part.get(name), kind):
                return f"{where}{name} is not {kind.__name__}"
    config = record["config"]
    if (record["run_id"], record["phase"], config["seed"]) != (run_id, "final", seed):
        found = f"{record['phase']} run {record['run_id']} with seed {config['seed']}"
        return f"holds {found}, where cells.json names final run {run_id} with seed {seed}"
    if "name" not in config["model"] or "name" not in config["data"]:
        return "config.model or config.data has no name"
    if not all(isinstance(method, dict) and "name" in method for method in config["methods"]):
        return "config.methods holds an entry without a name"
    return _rows_problem(record["rows"])


def _rows_problem(rows: list[Any]) -> str:
    seen = set()
    for row in rows:
        if not isinstance(row, dict) or not set(ROW) <= set(row):
            return f"a row lacks some of {', '.join(ROW)}"
        value = row["accuracy"]
        if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
            return f"accuracy {value!r} is not in [0, 1]"
        if row["bits"] != FLOAT and not isinstance(row["bits"], int):
            return f"bits {row['bits']!r} is neither an integer nor {FLOAT!r}"
        key = tuple(str(row[name]) for name in ("split", "deploy", "scale", "bits"))
        if key in seen:
            return f"two rows for {' '.join(key)}"
        seen.add(key)
    return "" if any(row["split"] == "test" for row in rows) else "no row of the test split"


def read_metrics(folder: Path) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Epoch -> metrics of a run, and notes. Of an epoch that a resumed run wrote twice, the last counts."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return {}, [f"{path}: no such file"]
    epochs: dict[int, dict[str, Any]] = {}
    notes = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            epochs[int(entry[EPOCH])] = entry
        except (ValueError, KeyError, TypeError):
            what = "truncated last line" if number == len(lines) else f"unreadable line {number}"
            notes.append(f"{path}: {what} ignored")
    return epochs, notes


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
