"""`python -m harness.bench METHOD.py`: run a method of your own on a suite of records, and compare it with all of them.

The suite is a finished sweep, by default the committed one of every method on digits. Its sweep.json says how runs are
made: data, networks, targets, trials, seeds. Your method gets its cells in a sweep of its own, which is launched (the
same command continues it); its finals are then compared with those of all other methods, paired by seed.
"""

import argparse
import hashlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry, yaml_file
from harness.core.command import positive, run_command
from harness.core.errors import UserError, unknown
from harness.core.outside import is_name, shown
from harness.records.files import read_json
from harness.records.sweep_directory import SweepDirectory

if TYPE_CHECKING:  # imported on use: `--help` answers without it
    from harness.sweep.cells import Cell
    from harness.sweep.config import SweepConfig

#: The committed records, in the repository.
SUITE = "analysis/results/methods_digits"
_RATE, _TARGET = "train.learning_rate", "target_bit"
#: Digits of a method's digest, and of that of `--search`, in the name of its sweep: an edited one gets another.
_DIGITS = 6


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.estimate and not options.dry_run:
        raise UserError("--estimate is for --dry-run: it says how long the suite would take")
    if options.so_far and options.dry_run:
        raise UserError("--so-far and --dry-run: give one; both start nothing")
    against = options.against or _committed()
    spec = suite_of(against, options)
    command = shlex.join(["python", "-m", "harness.bench", *(sys.argv[1:] if arguments is None else arguments)])
    if options.so_far:
        return _so_far(options.root, spec, against, command)
    from harness.sweep.cells import check_all_but_methods, check_methods, expand

    cells = expand(spec, checked=False)
    check_all_but_methods(spec, cells)
    check_methods(spec, cells)  # before a line is printed
    from harness.cli.launching import carry_out

    refused = _say_ahead(against, spec, cells, options.dry_run)
    status = carry_out(spec, cells, options)
    if options.dry_run:
        return max(status, refused)
    if status:
        print(f"{command} --so-far compares what is finished", file=sys.stderr)
        return status
    from harness.cli.benches import figures_of
    from harness.cli.beside import beside

    folder = options.root / spec.name
    beside(folder, against, figures_of(folder, against, Path(SUITE).name), command)
    return 0


def _say_ahead(against: Path, spec: "SweepConfig", cells: "list[Cell]", dry: bool) -> int:
    """Say what the comparison will be able to decide, and whether it can be made.

    Where it cannot, raises UserError with what differs; a dry run prints that, and 2 is returned.
    """
    from harness.cli import bench_tests, comparable

    try:
        groups = comparable.groups_of(against)
        said = [*bench_tests.ahead(groups, cells, len(spec.final.seeds))]
        print("\n".join([*said, comparable.ahead(against, groups, spec, cells, read=not dry)]), flush=True)
    except UserError as error:
        if not dry:
            raise
        print(f"would be refused: {error}", flush=True)
        return 2
    return 0


def _so_far(root: Path, spec: "SweepConfig", against: Path, command: str) -> int:
    """Compare the cells that are finished, and say what is left. Raises UserError where none is."""
    from harness.cli import benches

    folder, beside_it = root / spec.name, benches.others(root, spec)
    files = SweepDirectory(folder)
    if not (files.sweep.is_file() and files.cells.is_file()):
        begins = "the same command without --so-far starts it"
        raise UserError(f"nothing to compare yet: {folder} is not there; {begins}{beside_it}")
    from harness.cli.beside import beside
    from harness.sweep import plan
    from harness.sweep.queue import load_sweep
    from harness.sweep.rebuild import as_it_is

    left = {phase: f"{one.left} of {one.total}" for phase, one in plan.count(as_it_is(load_sweep(folder))).items()}
    said = f"left: {left['tune']} trials, {left['final']} finals; {benches.goes_on(folder, spec)}"
    try:
        beside(folder, against, benches.figures_of(folder, against, Path(SUITE).name), command, so_far=True)
    except UserError as error:
        raise UserError(f"{error}; {said}{beside_it}") from None
    print(said)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description="Compare a method with all others.")
    parser.add_argument("method", metavar="METHOD.py", help="or METHOD.py:CLASS, or a module")
    parser.add_argument(
        "--on", action="append", default=[], metavar="NAME", help="a method below it, such as a quantizer"
    )
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="KEY={...}",
        help="what its trials tune, as in a sweep file; default: the learning rate, as the suite's others do",
    )
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="only this network of the suite")
    parser.add_argument("--against", type=Path, metavar="DIR", help=f"a finished sweep; default: {SUITE}")
    parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="of results; default: runs")
    parser.add_argument("--cluster", choices=("local", "debug"), default="local", help="default: local")
    parser.add_argument("--workers", type=positive, metavar="N", help="at once; default: one per GPU or CPU core")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--estimate", action="store_true", help="with --dry-run: measure steps, say how long it takes")
    parser.add_argument(
        "--so-far",
        action="store_true",
        help="start nothing: compare the targets of which all finals are finished, and say what is left; 2 if none is",
    )
    parser.set_defaults(profile=None, gpus=None, runs=False, detach=False, wait=False)
    return parser


def _committed() -> Path:
    """The records of the repository that this package is in. Raises UserError where it was installed without them."""
    found = Path(__file__).parents[1] / SUITE
    if not (found / "cells.json").is_file():
        raise UserError(
            f"--against: the committed records are not at {found}: an installed package has none. They are in the "
            f"repository, in {SUITE}; say where they are, or name another finished sweep"
        )
    return found


def suite_of(against: Path, options: argparse.Namespace) -> "SweepConfig":
    """The sweep of a method: that of the records, with its cells alone. Raises UserError."""
    from pydantic import ValidationError

    from harness.core.validation import explain
    from harness.sweep.config import SweepConfig, from_json

    raw = read_json(SweepDirectory(against).sweep)
    if raw is None or not SweepDirectory(against).cells.is_file():
        raise UserError(
            f"--against {str(against)!r}: no sweep was finished there (it has no sweep.json and cells.json)"
        )
    outside.look_in(SweepDirectory(against).components)
    name = registry.check("method", options.method)
    if not is_name(name):
        raise UserError(f"method {name!r} is one of the harness: the suite has it; name a file or a module of your own")
    below = [registry.check("method", each) for each in options.on]
    cell = {"methods": [*below, name], "search": _searched(options.search, raw["cells"]), **_targets(raw)}
    searched = [hashlib.sha256("\n".join(options.search).encode()).hexdigest()[:_DIGITS]] if options.search else []
    of_sweep = "-".join(["bench", *map(shown, below), shown(name), name.rpartition("@")[2][:_DIGITS], *searched])
    grid = {**raw["grid"], **_models(raw["grid"], options.model)}
    # Networks so small gain nothing from a second thread, and on a busy machine threads wait for each other.
    base = {**raw["base"], "runtime": {**raw["base"].get("runtime", {}), "threads": 1}}
    own = {"name": of_sweep, "base": base, "grid": grid, "cells": [cell], "storage": "journal", "workers": None}
    try:
        return from_json({**raw, **own})
    except ValidationError as error:
        raise UserError(f"{options.method}, as in {against}: {explain(error, SweepConfig)}") from None


def _searched(given: list[str], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What trials tune: what a user says, or the learning rate as the first cell that does."""
    found = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise UserError(f"--search {each!r}: write key=range, for example 'pull.strength={{low: 0.1, high: 10}}'")
        found[key] = yaml_file.parse(text)
    rates = [{_RATE: cell["search"][_RATE]} for cell in cells if _RATE in cell["search"]]
    return found or next(iter(rates), {})


def _targets(raw: dict[str, Any]) -> dict[str, Any]:
    """The grid of the cell, where it is cells that have the targets."""
    if _TARGET in raw["grid"]:
        return {}
    lists = [cell["grid"].get(_TARGET, [cell["set"].get(_TARGET)]) for cell in raw["cells"]]
    found = dict.fromkeys(each for targets in lists for each in targets if each is not None)
    return {"grid": {_TARGET: list(found)}} if found else {}


def _models(grid: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The networks of these names; nothing where none is named."""
    there = {(each if isinstance(each, str) else each["name"]): each for each in grid.get("model", ())}
    for name in names:
        if name not in there:
            raise unknown("model of the suite", name, there)
    return {"model": [each for name, each in there.items() if name in names]} if names else {}


if __name__ == "__main__":
    run_command(main)
