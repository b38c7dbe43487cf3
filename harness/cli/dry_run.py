"""What `--dry-run` shows of a launch."""

import sys
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from harness.cli import idle_settings, unwatched
from harness.cli.builds import check_builds
from harness.cli.preflight import check_data
from harness.cli.there import There
from harness.cluster.profile import Profile
from harness.cluster.slurm import launch_notes, sbatch_text
from harness.cluster.waiting import waiting, waiting_notes
from harness.cluster.worker_info import present_on
from harness.core.errors import MissingDataError, UserError
from harness.core.wording import counted
from harness.records.archive import is_archive, runs_of
from harness.records.files import read_json
from harness.records.run_directory import TRIALS
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import plan
from harness.sweep.cells import Cell
from harness.sweep.config import SweepConfig
from harness.sweep.rebuild import RecordedSweep
from harness.sweep.samplers import known_params
from harness.sweep.search_space import Choices, Range, Space


def show(
    spec: SweepConfig,
    cells: Sequence[Cell],
    cluster: str,
    workers: int,
    profile: Profile,
    root: Path,
    there: There | None,
) -> None:
    """Print cells, trials, finals, workers and the job that would be submitted. there: of an earlier launch."""
    trials, finals = spec.tune.trials * len(cells), len(spec.final.seeds) * len(cells)
    print(f"sweep {spec.name} -> {root / spec.name}")
    print(f"objective {', '.join(spec.objectives)}; sampler {spec.sampler.name}; pruner {spec.pruner.name}")
    width = max(len(cell.id) for cell in cells)
    for cell in cells:
        after = "" if cell.measured_after == "rtn" else f"; chosen after {cell.measured_after}"
        seeds = counted(len(spec.final.seeds), "seed") + after
        print(f"  {cell.id:<{width}}  {counted(spec.tune.trials, 'trial')}, searching {searched(cell.search)}; {seeds}")
    parts = ", ".join((counted(len(cells), "cell"), counted(trials, "trial"), counted(finals, "final")))
    print(f"{parts}: {counted(trials + finals, 'run')}")
    for note in (*idle_settings.notes(spec, cells), *unwatched.of_sweep(spec, cells, root / spec.name)):
        print(note)
    count = min(workers, trials + finals)
    print(f"{counted(count, 'worker')}, cluster {cluster}, storage {spec.storage}")
    if cluster == "slurm":
        print("\n".join(launch_notes(spec, profile, root)))
        _show_job(spec, profile, root, count if there is None else there.missing(workers, cluster), there)


def searched(space: Space) -> str:
    """`train.learning_rate in [0.001, 0.01] (log)`, or `nothing`."""
    return "; ".join(f"{name} in {_shown(dimension)}" for name, dimension in space.items()) or "nothing"


def show_data(spec: SweepConfig, cells: Sequence[Cell]) -> int:
    """Print what is wrong with the data; returns 2 where they are there, and a launch would refuse them.

    A dry run may be made where they are not, such as on a cluster's login node.
    """
    try:
        check_data(spec, cells)
    except MissingDataError as error:
        print(f"not yet runnable: {error}\nwarning: a launch here is refused until the data are there")
    except UserError as error:
        print(f"not yet runnable: {error}\nwould be refused: its data cannot be used")
        return 2
    return 0


def _show_job(spec: SweepConfig, profile: Profile, root: Path, missing: int, there: There | None) -> None:
    present = present_on(there.workers, "slurm") if there else 0
    beside = f" beside the {counted(present, 'worker')} there" if present else ""
    if not missing:
        print(f"no job would be submitted: {'enough workers are there' if there and there.left else 'nothing is left'}")
        return
    print(f"job array that would be submitted{beside}:\n")
    print(sbatch_text(spec, profile, missing, root))


def show_builds(spec: SweepConfig, cells: Sequence[Cell], checked: bool = False) -> None:
    """Build each distinct network of the sweep, and print what could not be checked. Raises UserError.

    checked: whether the data have passed `check`.
    """

    def begin(count: int) -> None:
        print(f"checking {counted(count, 'network')}", file=sys.stderr, flush=True)

    for note in check_builds(spec, cells, begin, checked):
        print(f"not checked: {note}", flush=True)


def show_status(
    folder: Path, cluster: str, profile: Profile, there: There | None, refused: UserError | None = None
) -> int:
    """Print how much of a sweep is done; returns 2 when launching it would be refused.

    there, refused: what is in its folder, or why no launch would take it.
    """
    if is_archive(folder):
        print(f"{folder}: an archive, to be read only")
        return 0
    if refused is not None:
        print(f"would be refused: {refused}")
        return 2
    if there is None:
        return 0
    present, wait = sum(worker.present for worker in there.workers), len(waiting(there.workers))
    on_it = f"{counted(present, 'worker')} on it" + (f", {wait} of them waiting" if wait else "")
    cells = counted(len(there.new_cells), "new cell")
    new = f", {there.left_of_new_cells} of them in {cells}" if there.new_cells else ""
    there_is = f"{counted(there.left, 'run')} left, {on_it}{new}" if there.left else plan.ending(there.sweep)
    print(f"{folder}: {there_is}")
    if isinstance(there.sweep, RecordedSweep):
        print("the queue is not there; a launch rebuilds it from the records")
    if cluster != "slurm" or not there.left:
        return 0
    try:
        for note in waiting_notes(there.workers, profile, folder):
            print(note)
    except UserError as error:
        print(f"would be refused: {error}")
        return 2
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
