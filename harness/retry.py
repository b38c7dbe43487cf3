"""`python -m harness.retry SWEEP.yaml [RUN ...]`: repeat failed runs with the same parameters."""

from harness.cli.find import sweep_folder, sweep_parser
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.records import code_version


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = sweep_parser("retry", "Repeat failed runs.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids; default: every failed run")
    parser.add_argument("--changed-code", metavar="WHY", help="the code was changed, and what for; they start over")
    options = parser.parse_intermixed_args(arguments)
    if options.changed_code is not None and not options.changed_code.strip():
        raise UserError("--changed-code: say in a few words what changed")
    from harness.sweep import plan, retry
    from harness.sweep.queue import load_sweep

    sweep = load_sweep(sweep_folder(options.sweep, options.root))
    with sweep.files.lock("plan"):
        chosen = retry.failed_trials(sweep, options.runs)
        if chosen:
            code_version.note_change(sweep.files.code, options.changed_code)
        for study, trial in chosen:
            retry.retry_trial(sweep, study, trial, options.changed_code)
    plan.top_up(sweep)
    if not chosen:
        print(f"{sweep.folder}: no run failed, nothing to do")
        return 0
    wait = "runs wait" if len(chosen) > 1 else "run waits"
    print(f"{len(chosen)} {wait} again; workers that are running take them, otherwise launch")
    return 0


if __name__ == "__main__":
    run_command(main)
