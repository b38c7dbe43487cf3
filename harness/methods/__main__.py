"""`python -m harness.methods [FILE.py ...] [--markdown] [--cost FILE]`: all methods, their settings, sources and costs.

FILE.py: methods from outside, to list too; of a single one its whole docstring is shown, without the others.
"""

import argparse
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from harness.core import registry
from harness.core.command import run_command
from harness.core.errors import UserError
from harness.methods import find


class Entry(NamedTuple):
    """From a method's file: the first sentence of its docstring names it, the rest of that paragraph is the source."""

    name: str
    what: str
    kind: str
    acts_on: str
    activations: str
    settings: tuple[str, ...]
    source: str
    cost: str = ""


def entries(costs: Mapping[str, str] | None = None, further: Sequence[str] = ()) -> list[Entry]:
    """All methods, by name. costs: of those that were measured. further: methods from outside."""
    names = [*registry.known("method"), *further]
    return [_entry(name)._replace(cost=(costs or {}).get(name, "")) for name in names]


def read_costs(path: Path) -> dict[str, str]:
    """`1.31x mlp5; 1.10x resnet18` for each method, from the JSON of tests/benchmarks/method_cost.py.

    Raises UserError for a file that is not it.
    """
    try:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if "method" in row["detail"]]
        found: dict[str, list[str]] = {}
        for row in rows:
            detail = row["detail"]
            found.setdefault(detail["method"], []).append(f"{row['measured']:.2f}x {detail['network']}")
    except OSError as error:
        raise UserError(f"--cost {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--cost {str(path)!r}: no table of the benchmarks ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"--cost {str(path)!r}: holds no cost of a method (bench.py --only method_cost --json FILE)")
    return {method: "; ".join(costs) for method, costs in found.items()}


def _entry(name: str) -> Entry:
    found = find(name)
    paragraph = " ".join((registry.load("method", name).__doc__ or "").split("\n\n")[0].split())
    what, _, source = paragraph.partition(". ")
    settings = tuple(
        f"{setting}={field.get_default(call_default_factory=True)}"
        for setting, field in found.Config.model_fields.items()
        if setting != "name"
    )
    label = registry.shown(registry.check("method", name))
    texts = (found.kind, found.acts_on, found.activations)
    return Entry(label, what.removesuffix("."), *texts, settings, source.removesuffix("."))


def markdown(costs: Mapping[str, str] | None = None, further: Sequence[str] = ()) -> str:
    """The table of harness/methods/README.md; costs, where given, are its last column."""
    last = ["cost of a step"] if costs else []
    columns = ["method", "what", "kind", "acts on", "activations", "settings", "source", *last]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for one in entries(costs, further):
        settings = ", ".join(f"`{setting}`" for setting in one.settings)
        texts = [
            f"`{one.name}`",
            one.what,
            one.kind,
            one.acts_on,
            one.activations,
            settings,
            one.source,
            *([one.cost] if costs else []),
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def described(name: str, width: int, costs: Mapping[str, str] | None = None) -> str:
    """A method by itself: its docstring, what it is, its settings and measured costs, in lines of `width` columns.

    Raises UserError for an unknown name.
    """
    one = _entry(name)._replace(cost=(costs or {}).get(name, ""))
    paragraphs = inspect.cleandoc(registry.load("method", name).__doc__ or one.what).split("\n\n")
    about = [
        *(
            (field.replace("_", " "), getattr(one, field))
            for field in ("kind", "acts_on", "activations", "cost")
            if getattr(one, field)
        ),
        ("settings", ", ".join(one.settings) or "none"),
    ]
    lines = [one.name, ""]
    for paragraph in paragraphs:
        plain = paragraph.startswith((" ", "-", "*")) or "\n " in paragraph or "\n-" in paragraph
        lines += [*(paragraph.splitlines() if plain else textwrap.wrap(paragraph, width, break_on_hyphens=False)), ""]
    for label, text in about:
        lines += textwrap.wrap(f"{label}: {text}", width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.methods", description="All methods.")
    parser.add_argument(
        "further",
        nargs="*",
        metavar="FILE.py",
        help="methods from outside, to list too; a single one is shown by itself",
    )
    parser.add_argument("--markdown", action="store_true", help="as a table for a page")
    parser.add_argument("--cost", type=Path, metavar="FILE", help="show the costs that the benchmarks measured")
    options = parser.parse_args(arguments)
    costs = read_costs(options.cost) if options.cost else None
    if options.markdown:
        print(markdown(costs, options.further))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    if len(options.further) == 1:
        print(described(options.further[0], console.width, costs))
        return 0
    table = Table(*(name.replace("_", " ") for name in Entry._fields[: None if costs else -1]))
    for one in entries(costs, options.further):
        last = [one.cost.replace("; ", "\n")] if costs else []
        table.add_row(*one[:5], "\n".join(one.settings), one.source, *last)
    console.print(table)
    return 0


if __name__ == "__main__":
    run_command(main)
