"""What `--dry-run --estimate` shows: how long a sweep takes on this machine, each distinct network measured."""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from harness.cli.builds import without_numbers
from harness.cli.preflight import check_data
from harness.cli.there import There
from harness.cluster.slots import cores
from harness.core.wording import counted
from harness.records.run_directory import RunDirectory
from harness.sweep.cells import Cell, at_corners
from harness.sweep.config import SweepConfig
from harness.training.config import RunConfig
from harness.training.pretrain import parent_of

if TYPE_CHECKING:
    from harness.training.cost import Cost


def show(
    spec: SweepConfig,
    cells: Sequence[Cell],
    cluster: str,
    workers: int,
    slots: Sequence[str],
    there: There | None = None,
) -> None:
    """Measure, and print the seconds of each cell's runs and of the sweep, without the runs that are over.

    there: of an earlier launch; a run that a worker has counts whole. Raises UserError where data is missing.
    """
    every = spec.tune.trials, len(spec.final.seeds)
    to_run = dict.fromkeys([cell.id for cell in cells], every) | (there.left_by_cell() if there else {})
    runs, planned = sum(map(sum, to_run.values())), len(cells) * sum(every)
    if not runs:
        print(f"nothing is left to run of {counted(planned, 'run')}, and nothing to measure")
        return
    check_data(spec, cells)
    over = f"{planned - runs} of {counted(planned, 'run')} are over; what is left, " if runs < planned else ""
    print(f"{over}measured on this machine, in a sweep whose runs train all their epochs:")
    gpus = {slot.rpartition(".")[0] for slot in slots if slot.startswith("gpu")}
    # Runs that share a GPU share its time.
    at_once = min(runs, len(gpus) if gpus and cluster == "local" else workers)
    measured = _Measured(None if gpus or cluster != "local" else max(1, cores() // workers))
    total_s, longest_s = 0.0, 0.0
    width = max(len(cell.id) for cell in cells)
    for cell in cells:
        said, cell_s, run_s = _of_cell(at_corners(spec, cell), measured, to_run[cell.id], every)
        total_s, longest_s = total_s + cell_s, max(longest_s, run_s)
        print(f"  {cell.id:<{width}}  {said}", flush=True)
    total_s += _show_parents(spec, [cell for cell in cells if any(to_run[cell.id])], measured, there)
    wall_s = max(total_s / at_once, longest_s)
    print(f"{shown(total_s)} of runs one after another; {shown(wall_s)} with {at_once} at once")
    if spec.pruner.name != "none" or any(config.train.patience for cell in cells for config in at_corners(spec, cell)):
        print("at most: patience and the pruner end runs before their last epoch")


def _of_cell(
    configs: Sequence[RunConfig], measured: "_Measured", left: tuple[int, int], every: tuple[int, int]
) -> tuple[str, float, float]:
    """What to say of a cell, the seconds of its runs that are left and of the longest of them.

    configs: of runs at the ends of what it searches. left, every: its trials and finals.
    """
    if not any(left):
        return "nothing is left", 0.0, 0.0
    costs = [measured.cost(config) for config in configs]
    pairs = list(zip(costs, (config.train.epochs for config in configs), strict=True))
    tune_s, final_s = (fmean(cost.run_s(epochs, final) for cost, epochs in pairs) for final in (False, True))
    cell_s = left[0] * tune_s + left[1] * final_s
    step_s, epoch_s = fmean(cost.step_s for cost in costs), fmean(cost.epoch_s for cost in costs)
    total = counted(sum(every), "run")
    these = f"all {total}" if left == every else f"{sum(left)} of {total} left,"
    steps = sorted({cost.steps for cost in costs})
    epoch = f"epoch of {' to '.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} steps {shown(epoch_s)}"
    said = f"step {shown(step_s)}, {epoch}, run {shown(final_s)}, {these} {shown(cell_s)}"
    return said, cell_s, final_s if left[1] else tune_s


def _show_parents(spec: SweepConfig, cells: Sequence[Cell], measured: "_Measured", there: There | None) -> float:
    """Print what the float networks take from which runs start, but for those that are there; returns the seconds."""
    parents: dict[str, RunConfig] = {}
    for cell in cells:
        for config in at_corners(spec, cell):
            parents |= _parents(spec, config)
    folder = there.sweep.files.pretrained if there else None
    missing = [
        config for run_id, config in parents.items() if not (folder and RunDirectory(folder / run_id).record.exists())
    ]
    if not missing:
        return 0.0
    first_s = sum(measured.cost(config).run_s(config.train.epochs, False) for config in missing)
    print(f"  float networks to start from: {len(missing)}, {shown(first_s)}")
    return first_s


class _Measured:
    """Costs by what decides them. threads: of a run on the CPU, None: as the configuration says."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._costs: dict[str, Cost] = {}

    def cost(self, config: RunConfig) -> "Cost":
        """Of a run; networks that differ in numbers of their methods alone are measured once."""
        from harness.training import cost

        sections = (config.data, config.model, config.exclude, without_numbers(config.methods))
        how = (config.train.batch_size, config.train.precision, config.deploy.precision, config.deploy.bits)
        key = json.dumps([*sections, *how, config.deploys, config.monitor.deploy])
        if key not in self._costs:
            if self._threads is not None and config.runtime.threads is None:
                runtime = config.runtime.model_copy(update={"threads": self._threads})
                config = config.model_copy(update={"runtime": runtime})
            self._costs[key] = cost.measure(config)
        return self._costs[key]


def _parents(spec: SweepConfig, config: RunConfig) -> dict[str, RunConfig]:
    """The float runs that a cell's runs start from, by id."""
    if config.pretrain is None:
        return {}
    seeds = (spec.tune.seed, *spec.final.seeds) if spec.tune.trials else spec.final.seeds
    found = [parent_of(config.model_copy(update={"seed": seed})) for seed in seeds]
    return {parent.run_id(): parent for parent in found}


def shown(seconds: float) -> str:
    """`7.2 ms`, `41 s`, `12 min`, `3.5 h`, `9.1 days`."""
    for unit, size, until in (("ms", 1e-3, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 5_400.0), ("h", 3600.0, 172_800.0)):
        if seconds < until:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"
