"""`python -m harness.methods [--markdown]`: the methods there are, what they act on, their knobs, their sources."""

import argparse
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from harness import registry
from harness.errors import run_command
from harness.methods import find


class Entry(NamedTuple):
    """A method, from its file: the first sentence of its docstring is what it is, the rest of that paragraph whose."""

    name: str
    what: str
    kind: str
    acts_on: str
    knobs: tuple[str, ...]
    source: str


def entries() -> list[Entry]:
    """All methods, by name."""
    return [_entry(name) for name in registry.names("method")]


def _entry(name: str) -> Entry:
    found = find(name)
    paragraph = " ".join((registry.load("method", name).__doc__ or "").split("\n\n")[0].split())
    what, _, source = paragraph.partition(". ")
    knobs = tuple(
        f"{knob}={field.get_default(call_default_factory=True)}"
        for knob, field in found.Config.model_fields.items()
        if knob != "name"
    )
    return Entry(name, what.removesuffix("."), found.kind, found.acts_on, knobs, source.removesuffix("."))


def markdown() -> str:
    """The table of the README."""
    lines = ["| method | what | kind | acts on | knobs | source |", "|---|---|---|---|---|---|"]
    for one in entries():
        knobs = ", ".join(f"`{knob}`" for knob in one.knobs)
        lines.append(f"| `{one.name}` | {one.what} | {one.kind} | {one.acts_on} | {knobs} | {one.source} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.methods", description="The methods there are.")
    parser.add_argument("--markdown", action="store_true", help="as the README's table")
    if parser.parse_args(arguments).markdown:
        print(markdown())
        return 0
    table = Table(*(name.replace("_", " ") for name in Entry._fields))
    for one in entries():
        table.add_row(*one[:4], "\n".join(one.knobs), one.source)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    return 0


if __name__ == "__main__":
    run_command(main)
