"""`python -m harness.config [NAME] [--markdown]`: every setting of a sweep file and of a run, with type and default.

NAME: a section (sweep, run, train, deploy, ...), a method, a model or a data set. Without one: all sections.
"""

import argparse
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.core import registry
from harness.core.command import run_command
from harness.core.errors import unknown


class Setting(NamedTuple):
    """One line of the list. range: of a number, or how many entries a list may have; empty where anything goes."""

    key: str
    type: str
    default: str
    range: str
    description: str


def sections() -> dict[str, tuple[str, type[BaseModel]]]:
    """The sections of a sweep file and of a run: where each is written, and the class that checks it."""
    from harness.core.config_base import QuantizerConfig
    from harness.data._config import Augment
    from harness.sweep.config import Algorithm, CellConfig, Final, SweepConfig, Tune
    from harness.sweep.search_space import Choices, Range
    from harness.training.config import DeployConfig, RunConfig, RuntimeConfig, TrainConfig

    return {
        "sweep": ("a sweep file", SweepConfig),
        "cells": ("cells[] of a sweep file", CellConfig),
        "search": ("a range in search", Range),
        "choices": ("a list of values in search", Choices),
        "tune": ("tune", Tune),
        "final": ("final", Final),
        "sampler": ("sampler and pruner: a name, or a section with the options of Optuna's class", Algorithm),
        "run": ("base of a sweep file, or a file for harness.run", RunConfig),
        "train": ("train, and pretrain", TrainConfig),
        "quantizer": ("quantizer", QuantizerConfig),
        "deploy": ("deploy", DeployConfig),
        "runtime": ("runtime", RuntimeConfig),
        "augment": ("data.augment", Augment),
    }


def settings_of(config: type[BaseModel]) -> list[Setting]:
    """The fields of a configuration class, in order."""
    return [
        Setting(name, type_name(field), default_of(field), range_of(field), description_of(config, name))
        for name, field in config.model_fields.items()
    ]


def description_of(config: type[BaseModel], name: str) -> str:
    """A field's description, or that of the base class whose field it narrows."""
    classes = [each for each in config.__mro__ if issubclass(each, BaseModel) and name in each.model_fields]
    return next((text for each in classes if (text := each.model_fields[name].description)), "")


def type_name(field: FieldInfo) -> str:
    """`int`, `list of int`, `adam | adamw | sgd`: what is written in YAML."""
    return _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type_name(part) for part in inner))
    if origin in (tuple, list):
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return f"mapping of {_type_name(inner[0])} to {_type_name(inner[1])}"
    if origin is not None:  # Annotated
        return _type_name(inner[0])
    if annotation in (None, type(None)):
        return "null"
    if annotation is Any:
        return "any value"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "Path": "path"}.get(annotation.__name__, annotation.__name__)


def default_of(field: FieldInfo) -> str:
    """The default as in YAML; `required` without one."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        return str(named["name"]) if set(named) == {"name"} else "its defaults"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != {} else "{}"


def range_of(field: FieldInfo) -> str:
    """`0 <= x < 1`, `at least 1 entry`, a pattern: what pydantic checks besides the type."""
    found = dict(_limits(field.metadata))
    low = f"{found['ge']} <= " if "ge" in found else f"{found['gt']} < " if "gt" in found else ""
    high = f" <= {found['le']}" if "le" in found else f" < {found['lt']}" if "lt" in found else ""
    parts = [f"{low}x{high}"] if low or high else []
    if "min_length" in found:
        parts.append(f"at least {found['min_length']} {'entry' if found['min_length'] == 1 else 'entries'}")
    if "pattern" in found:
        parts.append(f"matches {found['pattern']}")
    return ", ".join(parts)


def _limits(metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "pattern"):
            if (value := getattr(item, name, None)) is not None:
                yield name, value


def find(name: str) -> tuple[str, type[BaseModel]]:
    """A section, method, model or data set by name: its title and class. Raises UserError for any other name."""
    known = sections()
    if name in known:
        return known[name]
    for kind in registry.KINDS:
        if name in registry.names(kind):
            return f"{kind} {name}", component_class(kind, name)
    names = [each for kind in registry.KINDS for each in registry.names(kind)]
    raise unknown("section, method, model or data set", name, [*known, *names])


def component_class(kind: str, name: str) -> type[BaseModel]:
    """The configuration class of a method, model or data set. Imports its file."""
    if kind == "method":
        from harness.methods import find as find_method

        return find_method(name).Config
    found: type[BaseModel] = registry.load(kind, name).Config
    return found


def as_text(title: str, settings: list[Setting]) -> str:
    """A section for a terminal: one setting a line, its description indented below."""
    lines = [title]
    for one in settings:
        details = "; ".join(part for part in (one.type, f"default {one.default}", one.range) if part)
        lines.append(f"  {one.key}: {details.replace('default required', 'required')}")
        if one.description:
            lines.append(f"      {one.description}")
    return "\n".join(lines)


def as_markdown(title: str, settings: list[Setting]) -> str:
    """A section as a Markdown table."""
    lines = [f"### {title}", "", "| key | type | default | range | what |", "|---|---|---|---|---|"]
    for one in settings:
        cells = [f"`{one.key}`", *(cell.replace("|", "\\|") for cell in one[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.config", description="Every setting there is.")
    what = "a section, method, model or data set; default: all sections"
    parser.add_argument("name", nargs="?", metavar="NAME", help=what)
    parser.add_argument("--markdown", action="store_true", help="as tables for a page")
    options = parser.parse_args(arguments)
    chosen = [find(options.name)] if options.name else list(sections().values())
    show = as_markdown if options.markdown else as_text
    print("\n\n".join(show(title, settings_of(config)) for title, config in chosen))
    return 0


if __name__ == "__main__":
    run_command(main)
