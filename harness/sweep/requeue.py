"""Failed runs that are given another chance."""

import time
from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError
from harness.records import code_version
from harness.records.files import read_json, write_json

if TYPE_CHECKING:
    import optuna

    from harness.sweep.queue import OpenSweep


def failed_trials(sweep: "OpenSweep") -> list[tuple["optuna.Study", "optuna.trial.FrozenTrial"]]:
    from optuna.trial import TrialState

    from harness.sweep import plan
    from harness.sweep.queue import current

    tuning = [
        (study, trial)
        for study in sweep.studies.values()
        for trial in current(study.get_trials(deepcopy=False))
        if trial.state == TrialState.FAIL
    ]
    finals = plan.current_finals(sweep, plan.chosen_cells(sweep))
    return tuning + [(sweep.finals, trial) for trial in finals if trial.state == TrialState.FAIL]


def note_change(sweep: "OpenSweep", why: str | None) -> None:
    """Keep what changed since the launch and why. Raises UserError when nobody said why."""
    path, mine = sweep.folder / "code.json", code_version.code_version()
    written = read_json(path) or {"code": mine, "changes": []}
    if code_version.differs(mine, written["code"]):
        if why is None:
            raise UserError(
                f"the code is {code_version.named(mine)}, and the sweep was launched with "
                f"{code_version.named(written['code'])}: "
                'say what changed with --changed-code "WHY" (it is kept in code.json), or go back to that code'
            )
        change = {"from": written["code"], "to": mine, "why": why, "when": time.time()}
        write_json(path, {"code": mine, "changes": [*written["changes"], change]})


def repeat(sweep: "OpenSweep", study: "optuna.Study", trial: "optuna.trial.FrozenTrial", why: str | None) -> None:
    """Enqueue a trial with a failed one's parameters, which takes its place in all counts."""
    from optuna.trial import TrialState, create_trial

    from harness.sweep.queue import RETRY_OF
    from harness.training.config import complete
    from harness.training.pretrain import drop_half_done

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
    if why and "run_id" in kept:  # what the old code left half done is not continued by the new
        files = sweep.run_directory(kept["run_id"])
        files.checkpoint.unlink(missing_ok=True)
        if written := read_json(files.config):
            drop_half_done(complete(written["config"]), sweep.folder / "pretrained")
