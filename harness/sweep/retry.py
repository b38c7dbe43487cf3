"""Repeating failed runs."""

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.core.errors import UserError, nearest
from harness.records.files import read_json
from harness.sweep import plan
from harness.sweep.queue import OpenSweep
from harness.sweep.trials import RETRY_OF, current, failed
from harness.training.config import complete
from harness.training.pretrain import drop_half_done


def failed_trials(sweep: OpenSweep, runs: Sequence[str]) -> list[tuple[optuna.Study, FrozenTrial]]:
    """The failed trials that count, with their studies: tuning first.

    runs: only these, by id or the beginning of one; all when empty. Raises UserError for a run that did not fail.
    """
    finals = plan.current_finals(sweep, sweep.files.cell_entries())
    tuning = [(study, current(study.get_trials(deepcopy=False))) for study in sweep.studies.values()]
    found = [(study, trial) for study, trials in (*tuning, (sweep.finals, finals)) for trial in failed(trials)]
    known = [str(trial.user_attrs.get("run_id")) for _, trial in found]
    for run in runs:
        if not any(name.startswith(run) for name in known):
            there = f" (failed: {', '.join(known)})" if known else " (no run failed)"
            raise UserError(f"run {run!r} is no failed run of this sweep{nearest(run, known)}{there}")
    return [item for item, name in zip(found, known, strict=True) if not runs or name.startswith(tuple(runs))]


def retry_trial(sweep: OpenSweep, study: optuna.Study, trial: FrozenTrial, why: str | None) -> None:
    """Enqueue a trial with a failed one's parameters, which takes its place in all counts."""
    kept = {key: value for key, value in trial.user_attrs.items() if key in ("cell", "seed", "run_id", "params")}
    attributes = {**kept, RETRY_OF: trial.number, **({"changed_code": why} if why else {})}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=dict(trial.system_attrs),
        )
    )
    if why and "run_id" in kept:  # new code must not continue from a checkpoint of old code
        files = sweep.files.run(kept["run_id"])
        files.checkpoint.unlink(missing_ok=True)
        if written := read_json(files.config):
            drop_half_done(complete(written["config"]), sweep.files.pretrained)
