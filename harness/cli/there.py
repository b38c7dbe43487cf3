"""What a launch finds in a sweep's folder: the runs that are left, and the workers that are there."""

import dataclasses
from pathlib import Path

from harness.cluster.worker_info import WorkerInfo, list_workers, present_on
from harness.records.archive import is_archive
from harness.records.files import read_json
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import plan, queue
from harness.sweep.changes import added_cells, check_change, settled
from harness.sweep.config import SweepConfig
from harness.sweep.queue import OpenSweep
from harness.sweep.rebuild import as_it_is


@dataclasses.dataclass(frozen=True)
class There:
    """A launched sweep, grown to what its file says now. left: runs. new_cells: ids; a launch makes their studies."""

    sweep: OpenSweep
    left: int
    workers: list[WorkerInfo]
    new_cells: list[str]

    @property
    def left_of_new_cells(self) -> int:
        """The runs of cells that it did not have at its last launch."""
        return len(self.new_cells) * (self.sweep.spec.tune.trials + len(self.sweep.spec.final.seeds))

    def left_by_cell(self) -> dict[str, tuple[int, int]]:
        """By a cell's id the trials and the finals that are left of it."""
        whole = self.sweep.spec.tune.trials, len(self.sweep.spec.final.seeds)
        return plan.left_by_cell(self.sweep) | dict.fromkeys(self.new_cells, whole)

    def missing(self, workers: int, cluster: str) -> int:
        """How many workers a launch would submit that wants so many at once on a cluster."""
        return max(0, min(workers, self.left) - present_on(self.workers, cluster))


def look(spec: SweepConfig, root: Path) -> There | None:
    """What is there, changing nothing; None without a launch before this one, and of an archive.

    Raises UserError for a sweep that its folder does not hold.
    """
    folder = root / spec.name
    if not SweepDirectory(folder).sweep.exists() or is_archive(folder):
        return None
    spec = settled(folder, spec)
    check_change(folder, spec)
    grown = as_it_is(dataclasses.replace(queue.load_sweep(folder), spec=spec))
    new = added_cells(read_json(SweepDirectory(folder).sweep), spec) or []
    found = There(grown, plan.left(grown), list_workers(folder), new)
    return dataclasses.replace(found, left=found.left + found.left_of_new_cells)
