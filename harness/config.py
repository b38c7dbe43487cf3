"""`python -m harness.config [NAME] [--markdown]`: every setting of a sweep file and of a run, with type and default.

NAME: a section (sweep, run, train, deploy, ...), a method, model, data set, sampler or pruner, or the file of one of
your own; or a key (learning_rate, train.learning_rate), wherever there is one of that name. Without: all sections.
`--json-schema` prints the JSON Schema of sweep files instead, for editors; sweeps/schema.json is this one.
"""

import argparse
import types
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.cli.component import kind_and_name
from harness.cli.keys import CHOSEN, depends
from harness.core import outside, registry
from harness.core.command import run_command
from harness.core.config_base import ActivationsConfig, KeyValueConfig, QuantizerConfig
from harness.core.errors import UserError, nearest, unknown
from harness.data._config import Augment, RandomResizedCrop, ShorterSide
from harness.sweep import json_schema
from harness.sweep.algorithms import OPTIONS
from harness.sweep.config import Algorithm, CellConfig, Final, SweepConfig, Tune
from harness.sweep.reported import Objective
from harness.sweep.search_space import Choices, Range
from harness.training.config import RunConfig, config_class
from harness.training.sections import DeployConfig, MonitorConfig, RuntimeConfig, TrainConfig

#: The sections of a sweep file and of a run: where each is written, and the class that checks it.
SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "sweep": ("a sweep file", SweepConfig),
    "cells": ("cells[] of a sweep file", CellConfig),
    "search": ("a range in search", Range),
    "choices": ("a list of values in search", Choices),
    "tune": ("tune", Tune),
    "final": ("final", Final),
    "sampler": ("sampler and pruner: a name, or a section with the options of Optuna's class", Algorithm),
    "objective": ("an entry of objective with its direction", Objective),
    "run": ("base of a sweep file, or a file for harness.run", RunConfig),
    "train": ("train, and pretrain", TrainConfig),
    "quantizer": ("quantizer", QuantizerConfig),
    "activations": ("activations", ActivationsConfig),
    "kv": ("kv", KeyValueConfig),
    "deploy": ("deploy", DeployConfig),
    "monitor": ("monitor", MonitorConfig),
    "runtime": ("runtime", RuntimeConfig),
    "augment": ("data.augment", Augment),
    "random_resized_crop": ("data.augment.random_resized_crop", RandomResizedCrop),
    "resize": ("data.resize of image_folder and tiny_imagenet, where it is no number", ShorterSide),
}
#: Sections by a second name.
_SAME = {"pruner": "sampler"}
_WHAT = "section, method, model, data set, sampler, pruner or key"
_LIMITS = ("ge", "gt", "le", "lt", "min_length", "pattern")


class Setting(NamedTuple):
    """One line of the list. range: of a number, or how many entries a list may have; empty where anything goes."""

    key: str
    type: str
    default: str
    range: str
    description: str


def settings_of(config: type[BaseModel]) -> list[Setting]:
    """The fields of a configuration class, in order."""
    return [
        Setting(name, _type(field.annotation), _default(field), _range(field), _description(config, name))
        for name, field in config.model_fields.items()
    ]


def _description(config: type[BaseModel], name: str) -> str:
    """A field's description, or that of the base class whose field it narrows."""
    classes = [each for each in config.__mro__ if issubclass(each, BaseModel) and name in each.model_fields]
    return next((text for each in classes if (text := each.model_fields[name].description)), "")


def _type(annotation: Any) -> str:
    """`int`, `list of int`, `adam | adamw | sgd`: what is written in YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_type, inner)))
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    if origin is not None:  # Annotated
        return _type(inner[0])
    if annotation in (None, type(None)):
        return "null"
    if annotation is Any:
        return "any value"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "Path": "path"}.get(annotation.__name__, annotation.__name__)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else _in_yaml(value)


def _in_yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        return str(named["name"]) if set(named) == {"name"} else "its defaults"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict) and set(value) == {"name"}:
        return str(value["name"])
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_in_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != {} else "{}"


def _range(field: FieldInfo) -> str:
    """`0 <= x < 1`, `at least 1 entry`, a pattern: what pydantic checks besides the type."""
    present = ((name, getattr(item, name, None)) for item in field.metadata for name in _LIMITS)
    found = {name: value for name, value in present if value is not None}
    low = f"{found['ge']} <= " if "ge" in found else f"{found['gt']} < " if "gt" in found else ""
    high = f" <= {found['le']}" if "le" in found else f" < {found['lt']}" if "lt" in found else ""
    parts = [f"{low}x{high}"] if low or high else []
    if "min_length" in found:
        parts.append(f"at least {found['min_length']} {'entry' if found['min_length'] == 1 else 'entries'}")
    if "pattern" in found:
        parts.append(f"matches {found['pattern']}")
    return ", ".join(parts)


def find(name: str) -> tuple[str, type[BaseModel]]:
    """A section, method, model, data set, sampler or pruner by name: its title and class.

    Raises UserError for any other name.
    """
    if _SAME.get(name, name) in SECTIONS:
        return SECTIONS[_SAME.get(name, name)]
    kinds = {each: kind for kind in registry.WITH_SETTINGS for each in registry.names(kind)}
    if name in kinds:
        return f"{kinds[name]} {name}", config_class(kinds[name], name)
    if _is_outside(name):
        return _find_outside(name)
    for kind, options in OPTIONS.items():
        if name in options:
            return f"{kind} {name}", options[name]
    raise unknown(_WHAT, name, _all_sections())


def find_settings(name: str) -> list[tuple[str, list[Setting]]]:
    """What has a name: a section or component with all of its settings, or a key alone, in each section that has it.

    Raises UserError for any other name.
    """
    section, dot, key = name.removeprefix("base.").rpartition(".")
    if dot and section in _all_sections():
        title, config = find(section)
        found = [one for one in settings_of(config) if one.key == key]
        if not found:
            raise unknown(f"key of {section}", key, config.model_fields)
        return [(title, found)]
    if not dot and name not in _all_sections() and not _is_outside(name):
        everything = [(title, settings_of(config)) for title, config in _everything()]
        having = [(title, [one for one in found if one.key == name]) for title, found in everything]
        if not any(found for _, found in having):
            names = sorted(_all_sections())
            hint = nearest(name, [*names, *{one.key: None for _, found in everything for one in found}])
            raise UserError(f"unknown {_WHAT} {name!r}{hint} (legal: {', '.join(names)}, and their keys)")
        return [(title, found) for title, found in having if found]
    try:
        title, config = find(name)
    except outside.AbsentError:
        return _below_base(name)
    return [(title, settings_of(config))]


def _below_base(name: str) -> list[tuple[str, list[Setting]]]:
    """What a dotted key names as it is written in a run's file: base.train, data.augment.flip.

    Raises UserError for keys of a component, which depend on the one that is chosen; AbsentError for what is no key.
    """
    path = name.removeprefix("base.")
    section, _, key = path.rpartition(".")
    inner = section.rpartition(".")[2]
    if inner in SECTIONS or (path != name and not section):
        return find_settings(f"{inner}.{key}" if inner else key)
    if section not in CHOSEN:
        raise outside.AbsentError(f"{name!r}: no key, and no module of this name that can be imported")
    raise depends(name, section, key)


def _all_sections() -> set[str]:
    """The names of sections and of components that come with the package."""
    components = {name for kind in registry.WITH_SETTINGS for name in registry.names(kind)}
    return {*SECTIONS, *_SAME, *components, *(name for options in OPTIONS.values() for name in options)}


def _everything() -> list[tuple[str, type[BaseModel]]]:
    return [find(name) for name in (*SECTIONS, *sorted(_all_sections() - {*SECTIONS, *_SAME}))]


def _is_outside(name: str) -> bool:
    return outside.is_reference(name) or any(name in outside.registered(kind) for kind in registry.WITH_SETTINGS)


def _find_outside(reference: str) -> tuple[str, type[BaseModel]]:
    kind, name = kind_and_name(reference)
    if kind == "task":
        raise UserError(f"{reference}: a task has no settings")
    return f"{kind} {registry.shown(name)}", config_class(kind, name)


def as_text(title: str, settings: list[Setting]) -> str:
    """A section for a terminal: one setting a line, its description indented below."""
    lines = [title] if settings else [f"{title}: no options"]
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
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"a {_WHAT}; default: all sections")
    parser.add_argument("--markdown", action="store_true", help="as tables for a page")
    parser.add_argument("--json-schema", action="store_true", help="the JSON Schema of sweep files, for editors")
    options = parser.parse_args(arguments)
    if options.json_schema:
        if options.name or options.markdown:
            raise UserError("--json-schema is of whole sweep files: leave out NAME and --markdown")
        print(json_schema.as_text(json_schema.sweep_schema()))
        return 0
    sections = [(title, settings_of(config)) for title, config in SECTIONS.values()]
    show = as_markdown if options.markdown else as_text
    print("\n\n".join(show(*each) for each in (find_settings(options.name) if options.name else sections)))
    return 0


if __name__ == "__main__":
    run_command(main)
