"""What `--dry-run` shows of a launch."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from harness.cli import idle_settings
from harness.cli.builds import check_builds
from harness.cli.preflight import check_data
from harness.cluster.profile import Profile
from harness.cluster.slurm import launch_notes, sbatch_text
from harness.core.errors import UserError
from harness.core.wording import counted
from harness.records.archive import is_archive, runs_of
from harness.records.files import read_json
from harness.records.run_directory import TRIALS
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import plan, queue
from harness.sweep.cells import Cell
from harness.sweep.changes import added_cells, check_change, settled
from harness.sweep.config import SweepConfig
from harness.sweep.rebuild import RecordedSweep, as_it_is
from harness.sweep.samplers import known_params
from harness.sweep.search_space import Choices, Range


def show(spec: SweepConfig, cells: Sequence[Cell], cluster: str, workers: int, profile: Profile, root: Path) -> None:
    """Print cells, trials, finals, workers and the job that would be submitted."""
    trials, finals = spec.tune.trials * len(cells), len(spec.final.seeds) * len(cells)
    print(f"sweep {spec.name} -> {root / spec.name}")
    print(f"objective {', '.join(spec.objectives)}; sampler {spec.sampler.name}; pruner {spec.pruner.name}")
    width = max(len(cell.id) for cell in cells)
    for cell in cells:
        searched = "; ".join(f"{name} in {_shown(space)}" for name, space in cell.search.items()) or "nothing"
        after = "" if cell.measured_after == "rtn" else f"; chosen after {cell.measured_after}"
        seeds = counted(len(spec.final.seeds), "seed") + after
        print(f"  {cell.id:<{width}}  {counted(spec.tune.trials, 'trial')}, searching {searched}; {seeds}")
    parts = ", ".join((counted(len(cells), "cell"), counted(trials, "trial"), counted(finals, "final")))
    print(f"{parts}: {counted(trials + finals, 'run')}")
    for note in idle_settings.notes(spec, cells):
        print(note)
    count = min(workers, trials + finals)
    print(f"{counted(count, 'worker')}, cluster {cluster}, storage {spec.storage}")
    if cluster == "slurm":
        print("\n".join(launch_notes(spec, profile, root)))
        print("job array that would be submitted:\n")
        print(sbatch_text(spec, profile, count, root))
    try:
        check_data(spec, cells)
    except UserError as error:
        print(f"not yet runnable: {error}")


def show_builds(spec: SweepConfig, cells: Sequence[Cell]) -> None:
    """Build each distinct network of the sweep, and print what could not be checked. Raises UserError."""

    def begin(count: int) -> None:
        print(f"checking {counted(count, 'network')}", file=sys.stderr, flush=True)

    for note in check_builds(spec, cells, begin):
        print(f"not checked: {note}", flush=True)


def show_status(spec: SweepConfig, root: Path) -> int:
    """Print how much of a sweep is done; returns 2 when launching it would be refused."""
    folder = root / spec.name
    if not SweepDirectory(folder).sweep.exists():
        return 0
    if is_archive(folder):
        print(f"{folder}: an archive, to be read only")
        return 0
    spec = settled(folder, spec)
    try:
        check_change(folder, spec)
    except UserError as error:
        print(f"would be refused: {error}")
        return 2
    there = queue.load_sweep(folder)
    grown = as_it_is(dataclasses.replace(there, spec=spec))
    new = added_cells(read_json(there.files.sweep), spec) or ()  # their studies are made by a launch
    runs = len(new) * (spec.tune.trials + len(spec.final.seeds))
    left, workers = plan.left(grown) + runs, len(there.files.living_workers())
    there_is = f"{counted(left, 'run')} left, {counted(workers, 'worker')} on it" if left else plan.ending(grown)
    print(f"{folder}: {there_is}" + (f", {runs} of them in {counted(len(new), 'new cell')}" if new else ""))
    if isinstance(grown, RecordedSweep):
        print("the queue is not there; a launch rebuilds it from the records")
    return 0


def show_runs(spec: SweepConfig, cells: Sequence[Cell], root: Path) -> None:
    """Print each run's id, which names its directory, and what it is, as far as that can be told.

    Ids are computed from the sweep file. The trials that an adaptive sampler drew, and the chosen parameters, are read
    from the sweep's folder, or its archive.
    """
    folder = root / spec.name
    entries = {entry["id"]: entry for entry in SweepDirectory(folder).cell_entries()}
    drawn = _drawn(runs_of(folder))
    for cell in cells:
        for number in range(spec.tune.trials):
            params = known_params(spec, cell, number) or drawn.get((cell.id, number))
            _show_run(cell, params, spec.tune.seed, "tune", f"trial {number}")
        chosen = entries.get(cell.id, {}).get("chosen") or (None if spec.tune.trials else {"params": {}})
        for seed in spec.final.seeds:
            _show_run(cell, chosen and chosen["params"], seed, "final", f"seed {seed}")


def _drawn(runs: Traversable) -> dict[tuple[str, int], dict[str, Any]]:
    entries = [entry for run in (runs.iterdir() if runs.is_dir() else ()) for entry in read_json(run / TRIALS) or ()]
    return {(entry["cell"], entry["trial"]): entry["params"] for entry in entries if entry["phase"] == "tune"}


def _show_run(cell: Cell, params: Mapping[str, Any] | None, seed: int, phase: str, which: str) -> None:
    try:
        name = "not drawn yet" if params is None else cell.config(params, seed, phase).run_id()
    except UserError as error:  # it may start from a checkpoint that is not here
        name = f"not known ({error})"
    values = ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in (params or {}).items()
    )
    print(f"{name}  {phase:<5}  {cell.id}  {which}  {values}".rstrip())


def _shown(dimension: Choices | Range) -> str:
    if isinstance(dimension, Choices):
        return "{" + ", ".join(str(choice) for choice in dimension.choices) + "}"
    notes = [word for word, said in (("log", dimension.log), ("int", dimension.kind == "int")) if said]
    return f"[{dimension.low:g}, {dimension.high:g}]" + (f" ({', '.join(notes)})" if notes else "")
