"""`python -m harness.retry SWEEP.yaml [RUN ...]`: give failed runs another chance, with the same parameters."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness import source
from harness.errors import UserError, nearest, run_command
from harness.locate import add_arguments, sweep_folder
from harness.record import read_json, write_json

if TYPE_CHECKING:
    import optuna

    from harness.study import Sweep


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.retry", description="Let failed runs wait again.")
    add_arguments(parser)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; default: every failed run")
    parser.add_argument("--changed-code", metavar="WHY", help="the code was changed, and what for; they start over")
    options = parser.parse_intermixed_args(arguments)
    if options.changed_code is not None and not options.changed_code.strip():
        raise UserError("--changed-code: say in a few words what changed")
    from harness import plan
    from harness.study import load_sweep

    sweep = load_sweep(sweep_folder(options.sweep, options.root))
    with sweep.lock():
        failed = _failed(sweep)
        chosen = _chosen(failed, options.runs)
        if chosen:
            _note_change(sweep, options.changed_code)
        for study, trial in chosen:
            _repeat(sweep, study, trial, options.changed_code)
    plan.top_up(sweep)
    if not chosen:
        print(f"{sweep.folder}: no run failed, nothing to do")
        return 0
    print(f"{len(chosen)} runs wait again; workers that are at it take them, otherwise launch")
    return 0


def _failed(sweep: "Sweep") -> list[tuple["optuna.Study", "optuna.trial.FrozenTrial"]]:
    from optuna.trial import TrialState

    from harness import plan
    from harness.study import current

    tuning = [
        (study, trial)
        for study in sweep.studies.values()
        for trial in current(study.get_trials(deepcopy=False))
        if trial.state == TrialState.FAIL
    ]
    finals = plan.current_finals(sweep, plan.chosen_cells(sweep))
    return tuning + [(sweep.finals, trial) for trial in finals if trial.state == TrialState.FAIL]


def _chosen(
    failed: list[tuple["optuna.Study", "optuna.trial.FrozenTrial"]], runs: Sequence[str]
) -> list[tuple["optuna.Study", "optuna.trial.FrozenTrial"]]:
    known = [str(trial.user_attrs.get("run_id")) for _, trial in failed]
    for run in runs:
        if not any(name.startswith(run) for name in known):
            there = f" (failed: {', '.join(known)})" if known else " (no run failed)"
            raise UserError(f"run {run!r} is no failed run of this sweep{nearest(run, known)}{there}")
    return [
        item for item, name in zip(failed, known, strict=True) if not runs or any(name.startswith(run) for run in runs)
    ]


def _note_change(sweep: "Sweep", why: str | None) -> None:
    """Keep what changed since the launch and why. Raises UserError when nobody said why."""
    path, mine = sweep.folder / "code.json", source.code_version()
    written = read_json(path) or {"code": mine, "changes": []}
    if source.differs(mine, written["code"]):
        if why is None:
            raise UserError(
                f"the code is {source.named(mine)}, and the sweep was launched with {source.named(written['code'])}: "
                'say what changed with --changed-code "WHY" (it is kept in code.json), or go back to that code'
            )
        change = {"from": written["code"], "to": mine, "why": why, "when": time.time()}
        write_json(path, {"code": mine, "changes": [*written["changes"], change]})


def _repeat(sweep: "Sweep", study: "optuna.Study", trial: "optuna.trial.FrozenTrial", why: str | None) -> None:
    """Enqueue a trial with a failed one's parameters, which takes its place in all counts."""
    from optuna.trial import TrialState, create_trial

    from harness.config import complete
    from harness.pretrain import drop_half_done
    from harness.study import RETRY_OF

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


if __name__ == "__main__":
    run_command(main)
