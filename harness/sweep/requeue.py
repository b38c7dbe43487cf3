"""Failed runs that are given another chance."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.records.files import read_json
from harness.sweep import plan
from harness.sweep.queue import OpenSweep
from harness.sweep.trials import RETRY_OF, current, failed
from harness.training.config import complete
from harness.training.pretrain import drop_half_done


def failed_trials(sweep: OpenSweep) -> list[tuple[optuna.Study, FrozenTrial]]:
    """The failed trials that count, with their studies: tuning first."""
    finals = plan.current_finals(sweep, sweep.files.cell_entries())
    tuning = [(study, current(study.get_trials(deepcopy=False))) for study in sweep.studies.values()]
    return [(study, trial) for study, trials in (*tuning, (sweep.finals, finals)) for trial in failed(trials)]


def repeat(sweep: OpenSweep, study: optuna.Study, trial: FrozenTrial, why: str | None) -> None:
    """Enqueue a trial with a failed one's parameters, which takes its place in all counts."""
    kept: dict[str, Any] = {
        key: trial.user_attrs[key] for key in ("cell", "seed", "run_id", "params") if key in trial.user_attrs
    }
    attributes: dict[str, Any] = {**kept, RETRY_OF: trial.number}
    if why:
        attributes["changed_code"] = why
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes,
            system_attrs=dict(trial.system_attrs),
        )
    )
    if why and "run_id" in kept:  # new code does not continue what old code left half done
        files = sweep.files.run(kept["run_id"])
        files.checkpoint.unlink(missing_ok=True)
        if written := read_json(files.config):
            drop_half_done(complete(written["config"]), sweep.files.pretrained)
