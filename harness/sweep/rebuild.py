"""A study from its records, where the queue's journal or database is gone.

The trials.json of each run directory names its trials; the record holds their result. Samplers that draw each trial
from its number alone need none of this without a pruner: they draw the same again, and find the records there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.records.files import read_json, write_json
from harness.records.run_directory import RunDirectory
from harness.sweep.cells import Cell
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep
from harness.sweep.samplers import NOTING_PRUNERS, distribution, known_params, make_pruner
from harness.sweep.search_space import STATIC_SAMPLERS
from harness.sweep.storage import JOURNAL
from harness.sweep.trials_over import TrialOver, trials_over


def note_trial(files: RunDirectory, claim: Claim) -> None:
    """Add a claimed trial to those of its run directory: cells that resolve to the same run share it."""
    entry = {"cell": claim.cell.id, "phase": claim.phase, "trial": claim.trial.number, "params": dict(claim.params)}
    entries = read_json(files.trials) or []
    if entry not in entries:
        write_json(files.trials, [*entries, entry])


def rebuild(sweep: OpenSweep) -> int:
    """Fill a queue that holds no trial at all with the tuning trials that are over; returns how many these are.

    Hold the plan's lock. Trials that failed or had not finished are drawn again. Pruned ones stay pruned.
    """
    if not needs_rebuilding(sweep.spec) or any(s.get_trials(deepcopy=False) for s in sweep.all_studies()):
        return 0
    return _add_tuned(sweep)


def needs_rebuilding(spec: SweepConfig) -> bool:
    """Whether trials that are drawn again lack anything: those before them, or that they were pruned."""
    return spec.sampler.name not in STATIC_SAMPLERS or spec.pruner.name != "none"


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
    """Add the tuning trials that are over, as many as the sweep promises at most; returns how many."""
    found = trials_over(sweep)
    count = 0
    for cell in sweep.cells:
        placed = _placed(sweep.spec, cell, found[cell.id])
        if placed:
            sweep.studies[cell.id].add_trials(_as_trials(sweep, cell, placed))
        count += len(placed) - placed.count(None)
    return count


def _placed(spec: SweepConfig, cell: Cell, over: Sequence[TrialOver]) -> list[TrialOver | None]:
    """A cell's trials by number, up to the last that is over; None for one that is still to run.

    Trials of a static sampler are known by their parameters, which no other number's trial is given. Those of another
    move up where numbers are no places: `harness.retry` and an earlier loss of the queue give some a second one. Of
    more than the sweep promises, finished ones stay before pruned ones, which earlier versions drew again.
    """
    trials, numbers = spec.tune.trials, {each.number for each in over}
    found: list[TrialOver | None]
    if needs_rebuilding(spec) and spec.sampler.name in STATIC_SAMPLERS:
        by_params = {_key(each.params): each for each in over}
        found = [by_params.get(_key(known_params(spec, cell, number) or {})) for number in range(trials)]
    elif len(numbers) < len(over) or max(numbers, default=0) >= trials:
        kept = sorted(over, key=lambda each: each.values is None)[:trials]
        found = [*sorted(kept, key=lambda each: each.number)]
    else:
        by_number = {each.number: each for each in over}
        found = [by_number.get(number) for number in range(trials)]
    while found and found[-1] is None:
        found.pop()
    return found


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _as_trials(sweep: OpenSweep, cell: Cell, placed: Sequence[TrialOver | None]) -> list[FrozenTrial]:
    """The trials as the queue would have them, of a study in memory."""
    study = sweep.studies[cell.id]
    replayed = optuna.create_study(study_name=study.study_name, directions=study.directions)
    replayed.sampler, replayed.pruner = optuna.samplers.RandomSampler(), make_pruner(sweep.spec)
    distributions = {name: distribution(dimension) for name, dimension in cell.search.items()}
    for number, each in enumerate(placed):
        if each is None:
            replayed.enqueue_trial(known_params(sweep.spec, cell, number) or {})
            continue
        added = create_trial(
            state=TrialState.RUNNING,
            params=dict(each.params),
            distributions=distributions,
            intermediate_values={} if sweep.spec.pruner.name in NOTING_PRUNERS else dict(each.epochs),
            user_attrs={"run_id": each.run_id, "rebuilt": True},
        )
        replayed.add_trial(added)
        if sweep.spec.pruner.name in NOTING_PRUNERS:
            trial = optuna.trial.Trial(replayed, replayed.get_trials(deepcopy=False)[number]._trial_id)
            for epoch, value in each.epochs.items():
                trial.report(value, epoch)
                trial.should_prune()
        replayed.tell(number, each.values, state=TrialState.PRUNED if each.values is None else TrialState.COMPLETE)
    trials = replayed.get_trials()
    for frozen in trials:
        frozen.datetime_complete = frozen.datetime_start  # how long it took is not known
    return trials
