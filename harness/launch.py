"""`python -m harness.launch SWEEP.yaml --cluster {local,slurm,debug}`: make a sweep complete.

Idempotent: it creates or loads the studies, counts what is missing and starts that many workers, at most
`--workers`. Launching a finished sweep does nothing; launching an interrupted one finishes it.
"""

import argparse
from pathlib import Path

from harness.core.command import positive, run_command
from harness.core.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.launch", description="Carry out a sweep.")
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    parser.add_argument("--cluster", choices=("local", "slurm", "debug"), default="local", help="default: local")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the Slurm cluster (see slurm/)")
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="at once; default: one per GPU or CPU core; on Slurm all that the profile lets run at once",
    )
    parser.add_argument("--gpus", type=_devices, metavar="0,2", help="of this machine to use; default: all")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--runs", action="store_true", help="with --dry-run: each run, by the id that names it")
    parser.add_argument("--estimate", action="store_true", help="with --dry-run: measure steps, say how long it takes")
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--detach", action="store_true", help="return once the workers are submitted")
    after.add_argument("--wait", action="store_true", help="follow and replace lost workers (a local launch does)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the file")
    return parser


def _devices(text: str) -> list[str]:
    devices = [part.strip() for part in text.split(",")]
    if not all(devices) or len(set(devices)) < len(devices):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different CUDA devices, such as 0,2")
    return devices


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _check_flags(options)
    from harness.sweep.mistakes import read_checked

    spec, cells = read_checked(options.sweep, options.set)
    from harness.cli.launching import carry_out  # and Optuna with it, for which no mistake in the file has to wait

    return carry_out(spec, cells, options)


def _check_flags(options: argparse.Namespace) -> None:
    for flag, value, cluster in (("--profile", options.profile, "slurm"), ("--gpus", options.gpus, "local")):
        if value is not None and options.cluster != cluster:
            raise UserError(f"{flag} is for --cluster {cluster}, not {options.cluster}")
    for flag, given, why in (
        ("--runs", options.runs, "it lists what would be run"),
        ("--estimate", options.estimate, "it says how long the sweep would take"),
    ):
        if given and not options.dry_run:
            raise UserError(f"{flag} is for --dry-run: {why}")


if __name__ == "__main__":
    run_command(main)
