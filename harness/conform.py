"""`python -m harness.conform FILE.py [--set KEY=VALUE]`: check a method, model, data set or task of your own.

FILE.py: as a sweep names it, or the name of one of the harness. What it is follows from what it defines. The checks of
methods are those that every method here passes: a resumed run equals an uninterrupted one to the last bit, evaluation
changes nothing, deployed weights are on a grid. Exit status 1 if a check fails.
"""

import argparse
from typing import Any

from harness.core import yaml_file
from harness.core.command import run_command
from harness.core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.conform", description="Check a component.")
    parser.add_argument("component", metavar="FILE.py", help="or FILE.py:NAME, a module, or a component's name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a model or data set")
    options = parser.parse_args(arguments)
    settings = _settings(options.set)
    from harness.cli.component import kind_and_name
    from harness.conformance.runner import run_checks
    from harness.core.outside import shown

    kind, name = kind_and_name(options.component)
    if settings and kind not in ("model", "data set"):
        raise UserError(f"--set is for models and data sets; {options.component} is a {kind}")
    print(f"{kind} {shown(name)} ({name})")
    count = [0]

    def say(line: str) -> None:
        count[0] += 1
        print(line, flush=True)

    failed = run_checks(kind, name, settings, say)
    print(f"{count[0] - failed} of {count[0]} checks passed")
    return 1 if failed else 0


def _settings(given: list[str]) -> dict[str, Any]:
    found = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise UserError(f"--set {each!r}: write key=value, for example width=16")
        found[key] = yaml_file.parse(text)
    return found


if __name__ == "__main__":
    run_command(main)
