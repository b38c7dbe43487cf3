"""`python -m harness`: the commands, one per line."""

import argparse
import ast
from pathlib import Path

from harness.core.command import run_command
from harness.core.errors import UserError, nearest

#: In the order in which a study needs them.
COMMANDS = (
    *("launch", "status", "logs", "cancel", "retry", "evaluate", "export", "archive", "repeat", "run"),
    *("dashboard", "config", "methods", "conform", "bench"),
)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness", description="List the commands.")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="none: each is a module of its own")
    options, _ = parser.parse_known_args(arguments)
    if options.command is not None:
        known = options.command in COMMANDS
        hint = "" if known else nearest(options.command, COMMANDS) or f" (legal: {', '.join(COMMANDS)})"
        named = options.command if known else "COMMAND"
        raise UserError(f"{options.command!r}: write python -m harness.{named}, with a dot{hint}")
    width = max(map(len, COMMANDS))
    for name in COMMANDS:
        print(f"python -m harness.{name:<{width}}  {what(name)}")
    print("\nEach takes --help. Figures and tables: python analysis/make_figures.py")
    return 0


def what(name: str) -> str:
    """What a command does, from the first line of its file, which is not imported: some import torch."""
    folder = Path(__file__).parent
    path = folder / f"{name}.py" if (folder / f"{name}.py").exists() else folder / name / "__main__.py"
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return first.rpartition("`: ")[2].rstrip(".")


if __name__ == "__main__":
    run_command(main)
