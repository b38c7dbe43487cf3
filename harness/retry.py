"""`python -m harness.retry SWEEP.yaml [RUN ...]`: give failed runs another chance, with the same parameters."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.find import add_arguments, sweep_folder
from harness.core.command import run_command
from harness.core.errors import UserError, nearest
from harness.records import code_version

if TYPE_CHECKING:
    import optuna


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.retry", description="Let failed runs wait again.")
    add_arguments(parser)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; default: every failed run")
    parser.add_argument("--changed-code", metavar="WHY", help="the code was changed, and what for; they start over")
    options = parser.parse_intermixed_args(arguments)
    if options.changed_code is not None and not options.changed_code.strip():
        raise UserError("--changed-code: say in a few words what changed")
    from harness.sweep import plan, requeue
    from harness.sweep.queue import load_sweep

    sweep = load_sweep(sweep_folder(options.sweep, options.root))
    with sweep.lock():
        failed = requeue.failed_trials(sweep)
        chosen = _chosen(failed, options.runs)
        if chosen:
            code_version.note_change(sweep.files.code, options.changed_code)
        for study, trial in chosen:
            requeue.repeat(sweep, study, trial, options.changed_code)
    plan.top_up(sweep)
    if not chosen:
        print(f"{sweep.folder}: no run failed, nothing to do")
        return 0
    print(f"{len(chosen)} runs wait again; workers that are running take them, otherwise launch")
    return 0


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


if __name__ == "__main__":
    run_command(main)
