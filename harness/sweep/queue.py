"""A sweep's queue of work, kept by Optuna: claim a trial, report its value, put it back.

One study a cell holds the tuning trials, created as WAITING up to the sweep's target, so that every trial is
claimed once and the count is exact whatever the workers do. A study `finals` is a plain queue: test results never
reach a sampler. A trial whose worker died goes back to WAITING with its number and parameters.
"""

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.core import outside
from harness.core.errors import UserError
from harness.records.archive import refuse_archive
from harness.records.code_version import check_launched
from harness.records.files import read_json, write_json
from harness.records.sweep_directory import SweepDirectory
from harness.sweep import objective
from harness.sweep.cells import Cell, expand
from harness.sweep.changes import check_change, note_numerics, settled
from harness.sweep.config import SweepConfig, from_json, plain
from harness.sweep.objective import AnyObjective
from harness.sweep.reported import Objective, metrics_of_run
from harness.sweep.samplers import distribution, make_sampler
from harness.sweep.search_space import Scalar, Space
from harness.sweep.storage import open_storage, study_prefix
from harness.training.config import RunConfig

FINALS = "finals"
#: The attribute of a trial whose run has no whole copy on W&B: why.
NO_MIRROR = "no_mirror"


@dataclass(frozen=True)
class Claim:
    """A trial that this worker alone holds."""

    study: optuna.Study
    trial: optuna.trial.Trial
    cell: Cell
    phase: str
    params: Mapping[str, Any]
    seed: int

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration. Imports torch. Raises UserError for values that are legal alone but clash."""
        return self.cell.config(self.params, self.seed, self.phase)

    @cached_property
    def run_id(self) -> str:
        """The run's name, which is also noted in its trial."""
        run_id = self.config.run_id()
        self.trial.set_user_attr("run_id", run_id)
        return run_id


def load_sweep(folder: Path) -> "OpenSweep":
    """The sweep that a launch made in a folder, as large as it has grown by now. Raises UserError without one."""
    refuse_archive(folder)
    raw = read_json(SweepDirectory(folder).sweep)
    outside.look_in(SweepDirectory(folder).components)
    if raw is None:
        raise UserError(f"{folder} holds no sweep (no sweep.json that can be read); launch makes one")
    spec = from_json(raw)
    return OpenSweep(spec, expand(spec, checked=False), folder)


@dataclass(frozen=True)
class OpenSweep:
    """A sweep on disk: `<root>/<name>/`."""

    spec: SweepConfig
    cells: Sequence[Cell]
    folder: Path

    @cached_property
    def files(self) -> SweepDirectory:
        """The files in its folder."""
        return SweepDirectory(self.folder)

    @cached_property
    def storage(self) -> optuna.storages.BaseStorage:
        """The journal, or the sweep's database."""
        return open_storage(self.spec.storage, self.folder)

    @cached_property
    def studies(self) -> dict[str, optuna.Study]:
        """The study of each cell, by cell id."""
        return {cell.id: self._study(cell.id, self.spec.objective) for cell in self.cells}

    @cached_property
    def finals(self) -> optuna.Study:
        """The queue of final runs."""
        return self._study(FINALS, ("target",))

    def all_studies(self) -> Iterable[optuna.Study]:
        """The study of each cell, then the finals."""
        return (*self.studies.values(), self.finals)

    def _study(self, name: str, objectives: Sequence[AnyObjective]) -> optuna.Study:
        name = study_prefix(self.spec.storage, self.folder) + name
        try:  # loading writes nothing; creating always adds to the journal, even when the study is there
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            directions = [objective.direction(item, self.spec.metric) for item in objectives]
            return optuna.create_study(
                storage=self.storage, study_name=name, directions=directions, load_if_exists=True
            )

    def begun(self, cell: str) -> int:
        """How many trials of a cell are running or over."""
        study_id = self.studies[cell]._study_id
        return self.storage.get_n_trials(study_id, state=tuple(set(TrialState) - {TrialState.WAITING}))


def open_sweep(spec: SweepConfig, root: Path) -> OpenSweep:
    """Create or load a sweep. Raises UserError for an unusable root, a sweep edited after it ran, and changed code."""
    folder = root / spec.name
    refuse_archive(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"  # workers open a sweep at the same moment
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--root {str(root)!r}: cannot write there: {error.strerror}") from None
    spec = settled(folder, spec)
    sweep = OpenSweep(spec, expand(spec), folder)
    with sweep.files.lock("plan"):
        check_change(folder, spec)
        check_launched(sweep.files.code, spec.changed_code == "refuse")
        note_numerics(sweep.files)
        assert sweep.storage  # a database that does not answer is refused now, before the sweep's name is taken
        outside.keep(sweep.files.components, plain(spec))
        write_json(sweep.files.sweep, plain(spec))
        study_prefix(spec.storage, folder)  # made here, under the lock, once
    return sweep


def claim(sweep: OpenSweep, worker: str) -> Claim | None:
    """Take the next run: the least tuned cell first, then finals. None when nothing waits."""
    begun = {cell.id: sweep.begun(cell.id) for cell in sweep.cells}
    for cell in sorted(sweep.cells, key=lambda cell: begun[cell.id]):  # stable: in file order among equals
        study = sweep.studies[cell.id]
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        # A worker that loses the first takes a random other one: if all tried the second, most would lose again.
        for frozen in waiting[:1] + random.sample(waiting[1:], k=max(0, len(waiting) - 1)):
            if trial := _take(sweep, study, cell.id, frozen, worker):
                params = {name: _suggest(trial, name, cell.search) for name in sorted(cell.search)}
                return Claim(study, trial, cell, "tune", params, sweep.spec.tune.seed)
    cells = {cell.id: cell for cell in sweep.cells}
    for frozen in sweep.finals.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if trial := _take(sweep, sweep.finals, FINALS, frozen, worker):
            attributes = frozen.user_attrs
            params = json.loads(attributes["params"])
            return Claim(sweep.finals, trial, cells[attributes["cell"]], "final", params, attributes["seed"])
    return None


def _take(
    sweep: OpenSweep, study: optuna.Study, name: str, frozen: FrozenTrial, worker: str
) -> optuna.trial.Trial | None:
    """Claim a WAITING trial; None when another worker was faster."""
    try:
        if not sweep.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
            return None
    except optuna.exceptions.UpdateFinishedTrialError:
        return None
    sweep.storage.set_trial_user_attr(frozen._trial_id, "worker", worker)
    study.sampler = make_sampler(sweep.spec, name, frozen.number)
    return optuna.trial.Trial(study, frozen._trial_id)


def _suggest(trial: optuna.trial.Trial, name: str, space: Space) -> Scalar:
    wanted: Any = distribution(space[name])
    if isinstance(wanted, CategoricalDistribution):
        return trial.suggest_categorical(name, wanted.choices)
    suggest = trial.suggest_int if isinstance(wanted, IntDistribution) else trial.suggest_float
    return suggest(name, wanted.low, wanted.high, log=wanted.log, step=wanted.step)


def values_of(sweep: OpenSweep, config: RunConfig, run_id: str, record: Mapping[str, Any]) -> list[float]:
    """The objectives from a run's record, after the deploy method that the configuration monitors.

    What no row holds is read from its epochs. Raises UserError for what it did not report.
    """
    metric, deploy = config.task.metric, config.monitor.name
    own = any(isinstance(each, Objective) for each in sweep.spec.objective)
    epochs = sweep.files.run(run_id).read_metrics() if own else []
    found = metrics_of_run(record, epochs, metric, deploy)
    points, target = config.deploy.points, config.monitored_point
    return [objective.value(name, found, points, target, metric) for name in sweep.spec.objective]


def objectives(sweep: OpenSweep, claim: Claim, record: dict[str, Any]) -> list[float]:
    """The values that a record gives its study; 0 for a final run: test results never reach a study."""
    return values_of(sweep, claim.config, claim.run_id, record) if claim.phase == "tune" else [0.0]


def tell(claim: Claim, values: Sequence[float] | None) -> None:
    """Finish a claimed trial with its objectives; None: the pruner stopped it."""
    _end(claim, TrialState.PRUNED if values is None else TrialState.COMPLETE, values)


def tell_failed(sweep: OpenSweep, claim: Claim, reason: str, retry: bool = True) -> None:
    """Count a failure: the same trial once more while retries are left (and make sense), else FAIL."""
    failures = claim.trial.user_attrs.get("failures", 0) + 1
    claim.trial.set_user_attr("failures", failures)
    claim.trial.set_user_attr("reason", reason)
    if retry and failures <= sweep.spec.max_retries:
        put_back(sweep, claim.trial)
    else:
        _end(claim, TrialState.FAIL)


def _end(claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> None:
    try:
        claim.study.tell(claim.trial.number, values, state=state, skip_if_finished=True)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError) as error:
        # Its worker counted as dead and the trial was put back: the next worker to take it finds the record.
        print(f"trial {claim.trial.number} of {claim.study.study_name}: {error}", flush=True)


def put_back(sweep: OpenSweep, trial: optuna.trial.Trial | FrozenTrial) -> None:
    """Set a RUNNING trial back to WAITING, with its number and parameters."""
    sweep.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
