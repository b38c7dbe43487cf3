"""A sweep's queue of work, kept by Optuna: claim a trial, tell its value, put it back.

One study a cell holds the tuning trials, created as WAITING up to the sweep's target, so that every trial is
claimed once and the count is exact whatever the workers do. A study `finals` is a plain queue: test results never
reach a sampler. A trial whose worker died goes back to WAITING with its number and parameters.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from harness import objective
from harness.algorithms import make_sampler
from harness.config import RunConfig
from harness.errors import UserError
from harness.record import RunDirectory, read_json, write_json
from harness.schema import as_metrics
from harness.search import Choices, Scalar, Space
from harness.sweep import Cell, SweepSpec, changed_keys, expand, plain

FINALS = "finals"


class _KernelLock(JournalFileOpenLock):
    """The journal's lock, held by the kernel: a killed worker cannot leave it behind (Optuna's waits 30 s)."""

    def __init__(self, journal: Path) -> None:  # nothing of the base's own state is used
        self._journal, self._lock = journal, FileLock(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        self._drop_torn_line()
        return True

    def _drop_torn_line(self) -> None:
        """Cut off what a full disk left of a last line; anything appended to it would make the journal unreadable."""
        with open(self._journal, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            while size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                size -= 1
            file.truncate(size)

    def release(self) -> None:
        self._lock.release()


@dataclass(frozen=True)
class Claim:
    """A trial that this worker alone holds."""

    study: optuna.Study
    trial: optuna.trial.Trial
    cell: Cell
    phase: str
    config: RunConfig
    run_id: str


def load_sweep(folder: Path) -> "Sweep":
    """The sweep that a launch made in a folder, as large as it has grown by now."""
    spec = SweepSpec.model_validate(read_json(folder / "sweep.json"))
    return Sweep(spec, expand(spec), folder)


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk: `<root>/<name>/`."""

    spec: SweepSpec
    cells: Sequence[Cell]
    folder: Path

    @cached_property
    def storage(self) -> optuna.storages.BaseStorage:
        """The journal `study.log`."""
        path = self.folder / "study.log"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_KernelLock(path)))

    @cached_property
    def studies(self) -> dict[str, optuna.Study]:
        """The study of each cell, by cell id."""
        return {cell.id: self._study(cell.id, self.spec.objective) for cell in self.cells}

    @cached_property
    def finals(self) -> optuna.Study:
        """The queue of final runs."""
        return self._study(FINALS, ("target",))

    def _study(self, name: str, objectives: Sequence[str]) -> optuna.Study:
        try:  # loading writes nothing; creating always adds to the journal, even when the study is there
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            directions = [objective.direction(item) for item in objectives]
            return optuna.create_study(
                storage=self.storage, study_name=name, directions=directions, load_if_exists=True
            )

    def run_directory(self, run_id: str) -> RunDirectory:
        """Where a run lives."""
        return RunDirectory(self.folder / "runs" / run_id)

    def lock(self) -> FileLock:
        """Held while the plan changes: topping up, choosing, reaping."""
        return FileLock(self.folder / "plan.lock")


def open_sweep(spec: SweepSpec, root: Path) -> Sweep:
    """Create or load a sweep. Raises UserError for an unusable root and for a sweep edited after it ran."""
    folder = root / spec.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"  # workers open a sweep at the same moment
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--root {str(root)!r}: cannot write there: {error.strerror}") from None
    sweep = Sweep(spec, expand(spec), folder)
    with sweep.lock():
        before = read_json(folder / "sweep.json")
        if before is not None and (changed := changed_keys(before, plain(spec))):
            raise UserError(
                f"{folder} holds a sweep of this name that differs in: {', '.join(changed)}. Only tune.trials and "
                "final.seeds may grow; give the edited sweep a name (or --root) of its own"
            )
        write_json(folder / "sweep.json", plain(spec))
    return sweep


def claim(sweep: Sweep, worker: str) -> Claim | None:
    """Take the next run: the least tuned cell first, then finals. None when nothing waits."""
    waiting: list[tuple[int, int, FrozenTrial, Cell]] = []
    for place, cell in enumerate(sweep.cells):
        trials = sweep.studies[cell.id].get_trials(deepcopy=False)
        open_trials = [trial for trial in trials if trial.state == TrialState.WAITING]
        if open_trials:
            waiting.append((len(trials) - len(open_trials), place, open_trials[0], cell))
    for _, _, frozen, cell in sorted(waiting, key=lambda item: item[:2]):
        study = sweep.studies[cell.id]
        if (trial := _take(sweep, study, frozen, worker)) and (taken := _tuning_claim(sweep, study, trial, cell)):
            return taken
    cells = {cell.id: cell for cell in sweep.cells}
    for frozen in sweep.finals.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if trial := _take(sweep, sweep.finals, frozen, worker):
            cell, attributes = cells[frozen.user_attrs["cell"]], frozen.user_attrs
            config = cell.config(json.loads(attributes["params"]), attributes["seed"], "final")
            return Claim(sweep.finals, trial, cell, "final", config, config.run_id())
    return None


def _take(sweep: Sweep, study: optuna.Study, frozen: FrozenTrial, worker: str) -> optuna.trial.Trial | None:
    """Make a WAITING trial ours; None when another worker was faster."""
    try:
        if not sweep.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
            return None
    except optuna.exceptions.UpdateFinishedTrialError:
        return None
    study.sampler = make_sampler(sweep.spec, study.study_name, frozen.number)
    trial = optuna.trial.Trial(study, frozen._trial_id)
    trial.set_user_attr("worker", worker)
    return trial


def _tuning_claim(sweep: Sweep, study: optuna.Study, trial: optuna.trial.Trial, cell: Cell) -> Claim | None:
    params = {name: _suggest(trial, name, cell.search) for name in sorted(cell.search)}
    try:
        config = cell.config(params, sweep.spec.tune.seed, "tune")
    except UserError as error:  # values that are legal one by one can clash
        trial.set_user_attr("reason", str(error))
        study.tell(trial.number, state=TrialState.FAIL)
        return None
    run_id = config.run_id()
    trial.set_user_attr("run_id", run_id)
    return Claim(study, trial, cell, "tune", config, run_id)


def _suggest(trial: optuna.trial.Trial, name: str, space: Space) -> Scalar:
    dimension = space[name]
    if isinstance(dimension, Choices):
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.kind == "int":
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
        return trial.suggest_int(name, low, high, log=dimension.log, step=step)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def values_of(sweep: Sweep, config: RunConfig, metrics: dict[str, float]) -> list[float]:
    """The objectives from validation metrics."""
    bits = list(config.deploy.bits)
    return [objective.value(name, metrics, bits, config.monitored_bits) for name in sweep.spec.objective]


def tell(sweep: Sweep, claim: Claim, record: dict[str, Any]) -> None:
    """Finish a claimed trial with its record."""
    values = values_of(sweep, claim.config, as_metrics(record["rows"])) if claim.phase == "tune" else [0.0]
    _end(claim, TrialState.COMPLETE, values)


def tell_pruned(claim: Claim) -> None:
    """Finish a claimed trial that the pruner gave up."""
    _end(claim, TrialState.PRUNED)


def tell_failed(sweep: Sweep, claim: Claim, reason: str) -> None:
    """Count a failure: the same trial once more while retries are left, else FAIL."""
    failures = claim.trial.user_attrs.get("failures", 0) + 1
    claim.trial.set_user_attr("failures", failures)
    claim.trial.set_user_attr("reason", reason)
    if failures <= sweep.spec.max_retries:
        put_back(sweep, claim.trial)
    else:
        _end(claim, TrialState.FAIL)


def _end(claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> None:
    try:
        claim.study.tell(claim.trial.number, values, state=state, skip_if_finished=True)
    except ValueError as error:  # taken for dead and put back meanwhile; whoever takes it finds the record
        print(f"trial {claim.trial.number} of {claim.study.study_name}: {error}", flush=True)


def put_back(sweep: Sweep, trial: optuna.trial.Trial | FrozenTrial) -> None:
    """Let a RUNNING trial wait again, with its number and parameters."""
    sweep.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
