"""Statistics of trials: which ones count, which is best, how many are over, how long they took."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.core.bits import FLOAT
from harness.records.files import read_json
from harness.records.schema import as_metrics
from harness.sweep import objective

if TYPE_CHECKING:
    from harness.sweep.queue import OpenSweep

#: The user attribute of a trial that repeats a failed one: the other's number.
RETRY_OF = "retry_of"


def current(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: a failed one that `harness.retry` repeats does not."""
    found = list(trials)
    replaced = {trial.user_attrs.get(RETRY_OF) for trial in found}
    return [trial for trial in found if trial.number not in replaced]


def best_trials(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials with the best objective, by number. Of several: the Pareto front's best by the first."""
    candidates = study.best_trials if len(study.directions) > 1 else trials
    complete = [trial for trial in candidates if trial.state == TrialState.COMPLETE]
    pick = max if study.directions[0] == StudyDirection.MAXIMIZE else min
    best = pick((trial.values[0] for trial in complete), default=None)
    return sorted((trial for trial in complete if trial.values[0] == best), key=lambda trial: trial.number)


def best_trial(sweep: "OpenSweep", cell: str, trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The one of a cell's trials that its final runs take; `tie_break` decides among equals. None without any."""
    equal = best_trials(sweep.studies[cell], trials)
    if len(equal) > 1 and sweep.spec.tie_break == "loss":
        return min(equal, key=lambda trial: (_loss(sweep, trial), trial.number))
    return equal[0] if equal else None


def _loss(sweep: "OpenSweep", trial: FrozenTrial) -> float:
    """A trial's validation loss where its first objective is measured, from its record; infinite without one."""
    record = read_json(sweep.files.run(trial.user_attrs.get("run_id", "unknown")).record)
    if record is None:
        return math.inf
    config = record["config"]
    metric = sweep.spec.metric
    metrics = as_metrics(record["rows"], metric, objective.deploy_of(config))
    bits, target = config["deploy"]["bits"], config.get("target_bit") or FLOAT
    return objective.loss_at(sweep.spec.objective[0], metrics, bits, target, metric)


def failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those of the trials that failed."""
    return [trial for trial in trials if trial.state == TrialState.FAIL]


def mean_seconds(trials: Sequence[FrozenTrial]) -> float | None:
    """How long a complete trial took on average; None when there is none."""
    spans = [
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.datetime_complete and trial.datetime_start
    ]
    return fmean(spans) if spans else None


def without_first_ones(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials but each worker's first, which waits for imports and caches; all where there are no others."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.datetime_start]
    complete.sort(key=lambda trial: trial.datetime_start or datetime.max)
    first = {trial.user_attrs.get("worker"): trial for trial in reversed(complete)}
    return [trial for trial in complete if trial is not first[trial.user_attrs.get("worker")]] or complete


@dataclass
class Counts:
    """How far one phase of a sweep, or of a cell, is."""

    total: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    pruned: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Runs that still need a worker, or have one."""
        return self.total - self.done - self.failed - self.pruned

    @property
    def waiting(self) -> int:
        """Runs that still need a worker."""
        return self.left - self.running

    def add(self, trials: Iterable[FrozenTrial], label: str) -> None:
        """Count trials; `label` names their cell where they do not."""
        for trial in trials:
            self.done += trial.state == TrialState.COMPLETE
            self.running += trial.state == TrialState.RUNNING
            self.pruned += trial.state == TrialState.PRUNED
            if trial.state == TrialState.FAIL:
                self.failed += 1
                name, reason = trial.user_attrs.get("run_id", "?"), trial.user_attrs.get("reason", "unknown")
                self.failures.append(f"{trial.user_attrs.get('cell', label)}: run {name}: {reason}")
