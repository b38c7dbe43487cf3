"""Read a sweep from disk: cells.json names the finals, trials.json in a run's directory its tuning trials."""

import json
from collections.abc import Iterable
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from analysis.records import read_record
from analysis.results import Cell, Epochs, Failure, Final, Missing, PrunedTrial, SweepResults, Trial, refuse_nothing
from harness.core import outside
from harness.core.dotted import flatten
from harness.core.errors import UserError, unknown
from harness.records.archive import runs_of
from harness.records.schema import EPOCH


def sweep_names(root: Path) -> list[str]:
    """The folders of `root` that hold a cells.json."""
    names = sorted(path.parent.name for path in root.glob("*/cells.json"))
    if not names:
        what = "no folder in it holds a cells.json" if root.is_dir() else "there is no such folder"
        if (root / "cells.json").exists():
            what = f"it is one: --root {str(root.parent)!r} --sweep {root.name}"
        raise UserError(f"--root {str(root)!r} holds no sweep: {what} (default: 'runs')")
    return names


def load_results(root: Path, name: str) -> SweepResults:
    """Read the cells and the finals they name; what is absent or unreadable is listed, not hidden."""
    names = sweep_names(root)
    if name not in names:
        raise unknown("sweep", name, names)
    folder = root / name
    cells, objective = _read_cells(folder / "cells.json")
    sweep = SweepResults(name, cells, _read_object(folder / "sweep.json"), objective)
    outside.look_in(folder / outside.KEPT)
    runs = runs_of(folder)
    for cell in sweep.cells:
        for seed in cell.seeds:
            _load_final(sweep, runs, cell, seed)
    refuse_nothing(sweep)
    _load_trials(sweep, runs)
    return sweep


def _read_cells(path: Path) -> tuple[list[Cell], tuple[str, ...]]:
    """The cells, and what they were tuned for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_cell(raw) for raw in content["cells"]], tuple(content.get("objective") or ("target",))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error


def _read_object(path: Traversable) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    content = _read_json(path)
    return content if isinstance(content, dict) else None


def _read_json(path: Traversable) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None


def _cell(raw: dict[str, Any]) -> Cell:
    return Cell(
        id=raw["id"],
        methods=tuple(raw["methods"]),
        grid=dict(flatten(raw["grid"])),
        seeds=tuple(int(seed) for seed in raw["seeds"]),
        chosen=raw["chosen"],
        finals={int(seed): str(run_id) for seed, run_id in (raw["finals"] or {}).items()},
        failed=tuple(raw.get("failed") or ()),
        planned_trials=raw.get("trials"),
    )


def _load_final(sweep: SweepResults, runs: Traversable, cell: Cell, seed: int) -> None:
    """Add the final of `seed` to `sweep.finals`, or the reason why there is none to `sweep.missing`."""
    run_id = cell.finals.get(seed)
    folder = runs / str(run_id)
    failed = {str(value) for entry in cell.failed for value in _identifiers(entry)}
    if run_id is not None and (folder / "record.json").is_file():
        record, problem = read_record(folder / "record.json", run_id, "final", seed)
        if record is not None:
            lacking = _lacking_epochs(folder / "metrics.jsonl", int(record.get("epochs") or 0))
            if lacking and lacking not in sweep.incomplete:
                sweep.incomplete.append(lacking)
            epochs = partial(_no_epochs, lacking) if lacking else partial(read_metrics, folder)
            outcomes = partial(_read_outcomes, folder / "outcomes.json")
            sweep.finals.append(Final(cell, seed, run_id, record, epochs, outcomes))
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


def _load_trials(sweep: SweepResults, runs: Traversable) -> None:
    """The tuning trials of the cells, and the runs that failed or were pruned, from the run directories."""
    cells = {cell.id: cell for cell in sweep.cells}
    for folder in sorted(runs.iterdir(), key=lambda folder: folder.name) if runs.is_dir() else ():
        entries = [entry for entry in _read_list(folder / "trials.json") if entry.get("cell") in cells]
        status = _read_object(folder / "status.json") or {}
        _load_failure(sweep, folder.name, status, entries)
        tuned = [entry for entry in entries if entry.get("phase") == "tune"]
        if not tuned or not (folder / "record.json").is_file():
            if status.get("state") == "pruned":
                config = dict((_read_object(folder / "config.json") or {}).get("config") or {})
                sweep.pruned += [
                    PrunedTrial(
                        entry["cell"], int(entry["trial"]), folder.name, dict(entry["params"]), config,
                        partial(read_metrics, folder),
                    )
                    for entry in tuned
                ]  # fmt: skip
            continue
        record, problem = read_record(folder / "record.json", folder.name, "tune")
        if record is None:
            sweep.corrupt.append(f"{folder / 'record.json'}: {problem}")
            continue
        for entry in tuned:
            trial = Trial(cells[entry["cell"]], int(entry["trial"]), folder.name, dict(entry["params"]), record)
            sweep.trials.append(trial)
    recorded = {(trial.cell.id, trial.number) for trial in sweep.trials}  # a lost queue gives numbers anew
    sweep.pruned = [each for each in dict.fromkeys(sweep.pruned) if (each.cell, each.number) not in recorded]
    places = {cell.id: place for place, cell in enumerate(sweep.cells)}
    sweep.trials.sort(key=lambda trial: (places[trial.cell.id], trial.number))


def _load_failure(sweep: SweepResults, run_id: str, status: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    if status.get("state") == "failed":
        cells = tuple(dict.fromkeys(f"{entry['cell']}, {entry.get('phase')}" for entry in entries))
        sweep.failures.append(Failure(run_id, cells, str(status.get("reason") or "no reason given")))


def _read_list(path: Traversable) -> list[dict[str, Any]]:
    """The trials that a run belongs to; none where the file is damaged: the record then counts for no trial."""
    content = _read_json(path)
    needed = ("cell", "trial", "params")
    entries = content if isinstance(content, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and all(key in entry for key in needed)]


def _read_outcomes(path: Traversable) -> list[dict[str, Any]]:
    content = _read_json(path)
    return content if isinstance(content, list) else []


def _lacking_epochs(path: Traversable, trained: int) -> str:
    """What is wrong with a run's metrics where an epoch that it trained for is not there; nothing where all are."""
    if trained == 0:  # deployed as it came: there is nothing to report
        return ""
    try:
        lines = path.read_bytes().count(b"\n")
    except OSError:
        return f"{path}: not there, of a run of {trained} epochs"
    return f"{path}: {lines} of {trained} epochs" if lines < trained else ""


def _no_epochs(why: str) -> Epochs:
    """A mean over the epochs that happen to be left would look like any other."""
    return {}, [why]


def read_metrics(folder: Traversable) -> Epochs:
    """Epoch -> metrics of a run, and notes. Of an epoch that a resumed run wrote twice, the last counts."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}, [f"{path}: no such file"]
    epochs: dict[int, dict[str, Any]] = {}
    notes = []
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            epochs[int(entry[EPOCH])] = entry
        except (ValueError, KeyError, TypeError):
            what = "truncated last line" if number == len(lines) else f"unreadable line {number}"
            notes.append(f"{path}: {what} ignored")
    return epochs, notes
