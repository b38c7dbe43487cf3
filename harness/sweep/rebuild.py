"""A study from its records, where the queue's journal or database is gone.

The trials.json of each run directory names its trials; the record holds their result. Samplers that draw
each trial from its number alone need none of this: they draw the same again, and find the records there.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial

from harness.core.errors import UserError
from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory
from harness.sweep.cells import Cell
from harness.sweep.queue import Claim, OpenSweep, values_of
from harness.sweep.samplers import distribution
from harness.sweep.search_space import STATIC_SAMPLERS
from harness.sweep.storage import JOURNAL
from harness.training.config import complete


def note_trial(files: RunDirectory, claim: Claim) -> None:
    """Add a claimed trial to those of its run directory: cells that resolve to the same run share it."""
    entry = {"cell": claim.cell.id, "phase": claim.phase, "trial": claim.trial.number, "params": dict(claim.params)}
    entries = read_json(files.trials) or []
    if entry not in entries:
        write_json(files.trials, [*entries, entry])


def rebuild(sweep: OpenSweep) -> int:
    """Fill a queue that holds no trial at all with the finished tuning trials of the records; returns how many.

    Hold the plan's lock. Trials that failed, were pruned or had not finished are drawn again.
    """
    if sweep.spec.sampler.name in STATIC_SAMPLERS or any(s.get_trials(deepcopy=False) for s in sweep.all_studies()):
        return 0
    return _add_tuned(sweep)


@dataclass(frozen=True)
class RecordedSweep(OpenSweep):
    """A sweep without its queue: its trials are those of its records, in memory. Only to be looked at."""

    @cached_property
    def storage(self) -> BaseStorage:
        """Of this process alone."""
        return InMemoryStorage()


def as_it_is(sweep: OpenSweep) -> OpenSweep:
    """The sweep itself; where its queue is gone, a `RecordedSweep` of the runs that a launch need not repeat.

    No journal is written. The queue of a launch that has only just begun, before any record, is not gone.
    """
    is_there = _has_queue(sweep)
    if is_there and any(study.get_trials(deepcopy=False) for study in sweep.all_studies()):
        return sweep
    found = RecordedSweep(sweep.spec, sweep.cells, sweep.folder)
    count = _add_tuned(found)
    cells = {cell.id for cell in sweep.cells}
    for entry in sweep.files.cell_entries():
        for seed, run_id in entry["finals"].items():
            if entry["id"] in cells and read_json(sweep.files.run(run_id).record) is not None:
                attributes = {"cell": entry["id"], "seed": int(seed), "run_id": run_id}
                found.finals.add_trial(create_trial(state=TrialState.COMPLETE, value=0.0, user_attrs=attributes))
                count += 1
    return sweep if is_there and not count else found


def _has_queue(sweep: OpenSweep) -> bool:
    """Whether there is a queue, perhaps without a trial; of a database that is not asked."""
    journal = sweep.files.journal
    return sweep.spec.storage != JOURNAL or (journal.exists() and journal.stat().st_size > 0)


def _add_tuned(sweep: OpenSweep) -> int:
    """Add the tuning trials that have a record, as many as the sweep promises at most; returns how many.

    A trial that was repeated shares the run of the one that had failed.
    """
    cells = {cell.id: cell for cell in sweep.cells}
    found: list[tuple[int, Cell, dict[str, Any], dict[str, Any]]] = []
    for run in map(RunDirectory, sweep.files.runs_named()):
        entries = read_json(run.trials) or []
        record = read_json(run.record) if entries else None
        for entry in entries:
            cell = cells.get(entry["cell"])
            if record and cell and entry["phase"] == "tune" and set(entry["params"]) == set(cell.search):
                found.append((entry["trial"], cell, entry["params"], record))
    added: Counter[str] = Counter()
    for _, cell, params, record in sorted(found, key=lambda item: (item[1].id, item[0])):
        if added[cell.id] == sweep.spec.tune.trials:
            continue
        try:
            values = values_of(sweep, complete(record["config"]), record["run_id"], record)
        except UserError:  # the trial failed, and is drawn again
            continue
        sweep.studies[cell.id].add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                values=values,
                params=params,
                distributions={name: distribution(dimension) for name, dimension in cell.search.items()},
                user_attrs={"run_id": record["run_id"], "rebuilt": True},
            )
        )
        added[cell.id] += 1
    return added.total()
