"""The JSON Schema of sweep files, by which editors complete and check them.

It is taken from the classes that check a sweep. What those accept besides their fields (a name in place of a section,
dotted keys, settings of methods, models and data sets) is added here. What depends on several keys at once is left to
`harness.launch --dry-run`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from harness.core import registry
from harness.sweep.algorithms import OPTIONS
from harness.sweep.config import SweepConfig
from harness.sweep.content import NOT_SET
from harness.sweep.schema_outside import OUTSIDE, OWN_KEYS, only_known
from harness.sweep.search_space import Choices, Range
from harness.training.config import RunConfig, config_class
from harness.training.deploy_entries import AS

Schema = dict[str, Any]
#: The draft that editors know best.
DRAFT = "http://json-schema.org/draft-07/schema#"
_DEFS = "#/$defs/"
_WIDTH = 200
#: In this order, so that the file does not change with the order of imports.
_KINDS = {"method": "method", "model": "model", "data set": "data"}
_OBJECTIVE: Schema = {
    "anyOf": [
        {"enum": ["target", "worst", "mean"]},
        {"type": "string", "pattern": r"^val/[a-z][a-z0-9]*_.+$"},
        {"$ref": f"{_DEFS}Objective"},
    ]
}


def sweep_schema() -> Schema:
    """The schema of a sweep file, as JSON values. Imports torch, for the settings of methods."""
    defs: dict[str, Schema] = {}
    sweep = _taken(SweepConfig, defs)
    for kind, prefix in _KINDS.items():
        for name in registry.names(kind):
            defs[f"{prefix}-{name}"] = _component(kind, name, defs)
        defs[prefix] = _by_name({name: f"{prefix}-{name}" for name in registry.names(kind)}, defs, OUTSIDE)
    for kind, options in OPTIONS.items():
        for name, config in options.items():
            defs[f"{kind}-{name}"] = _named(_taken(config, defs), {"const": name})
        section = {**_by_name({name: f"{kind}-{name}" for name in options}, defs), "required": ["name"]}
        defs[kind] = {"anyOf": [{"enum": list(options)}, section]}
    _add_run(defs)
    _add_cells(defs)
    properties = sweep["properties"]
    properties["base"] = _described(properties["base"], {"$ref": f"{_DEFS}run"})
    properties["grid"] = _described(properties["grid"], {"$ref": f"{_DEFS}grid"})
    properties["objective"] = _described(properties["objective"], _one_or_list(_OBJECTIVE))
    for kind in OPTIONS:
        properties[kind] = _described(properties[kind], {"$ref": _DEFS + kind})
    conditions = only_known(defs)
    ordered = {name: defs[name] for name in sorted(defs)}
    about = {"$schema": DRAFT, "title": "A sweep file of the harness"}
    return {**about, **sweep, "allOf": conditions, "$defs": ordered}


def as_text(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON with each value on one line where it fits there, else with its parts on lines of their own.

    before: characters that are in front of it on its line, besides `indent` spaces.
    """
    short = json.dumps(value, ensure_ascii=False)
    if len(short) + indent + before <= _WIDTH or not isinstance(value, dict | list) or not value:
        return short
    pad = " " * (indent + 1)
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + as_text(each, indent + 1) for each in value) + f"\n{' ' * indent}]"
    named = [(f"{json.dumps(key)}: ", each) for key, each in value.items()]
    lines = (f"{pad}{key}{as_text(each, indent + 1, len(key))}" for key, each in named)
    return "{\n" + ",\n".join(lines) + f"\n{' ' * indent}}}"


def _taken(config: type[BaseModel], defs: dict[str, Schema]) -> Schema:
    """A class' own schema; the sections in it go to `defs`."""
    schema = _tidy(config.model_json_schema())
    defs.update(schema.pop("$defs", {}))
    return schema


def _tidy(schema: Any) -> Any:
    """Without titles, which repeat the keys, and without what only the harness reads."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: each for key, each in schema.items() if key not in ("title", "identity")}
    named = ("properties", "$defs")  # their keys are names, not keywords
    return {k: {n: _tidy(v) for n, v in each.items()} if k in named else _tidy(each) for k, each in kept.items()}


def _component(kind: str, name: str, defs: dict[str, Schema]) -> Schema:
    """The settings of a method, model or data set; none is required, since a cell may set or search it."""
    any_name = {"type": "string", "pattern": f"^{name}:.+$"} if (kind, name) == ("model", "timm") else {"const": name}
    schema = _named(_taken(config_class(kind, name), defs), any_name)
    schema.pop("required", None)
    return schema


def _named(schema: Schema, name: Schema) -> Schema:
    return {**schema, "properties": {"name": name, **_without(schema["properties"], "name")}}


def _by_name(targets: Mapping[str, str], defs: Mapping[str, Schema], *further: Schema) -> Schema:
    """A section whose `name` decides which other keys it has; targets: definition of each name.

    further: names beside these, with any keys.
    """
    names = [defs[target]["properties"]["name"] for target in targets.values()]
    words = [each["const"] for each in names if "const" in each]
    forms = [each for each in names if "const" not in each]
    keys = sorted({key for target in targets.values() for key in defs[target]["properties"]})
    cases = [
        {"if": {"properties": {"name": name}, "required": ["name"]}, "then": {"$ref": _DEFS + target}}
        for name, target in zip(names, targets.values(), strict=True)
    ]
    nameless = {"if": {"not": {"required": ["name"]}}, "then": {"propertyNames": {"enum": keys}}}
    forms += further
    name = {"anyOf": [{"enum": words}, *forms]} if forms else {"enum": words}
    return {"type": "object", "properties": {"name": name}, "allOf": [*cases, nameless]}


def _add_run(defs: dict[str, Schema]) -> None:
    """`run`: settings in `base`. Nothing is required there, since cells may add to it."""
    run = _taken(RunConfig, defs)
    properties = _without(run["properties"], *NOT_SET)
    for key in ("model", "data"):
        properties[key] = _described(properties[key], {"$ref": _DEFS + key})
    properties["tasks"] = _described(properties["tasks"], _one_or_list({"anyOf": [{"type": "string"}]}))
    for section in ("TrainConfig", "DeployConfig", "QuantizerConfig", "ActivationsConfig", "MonitorConfig"):
        defs[section].pop("required", None)
    names = registry.deploy_methods()
    settled = {
        "type": "object",
        "properties": {"name": {"anyOf": [{"enum": names[1:]}, OUTSIDE]}, AS: {"type": "string"}},
        "required": ["name"],
    }
    defs["DeployConfig"]["properties"]["methods"]["items"] = {"anyOf": [{"enum": names}, OUTSIDE, settled]}
    monitored = defs["MonitorConfig"]["properties"]
    monitored["deploy"] = _described(
        monitored["deploy"], {"anyOf": [{"enum": names}, OUTSIDE, {"$ref": f"{_DEFS}deploy"}]}
    )
    defs["deploy-rtn"] = {"type": "object", "properties": {"name": {"const": "rtn"}}, "additionalProperties": False}
    of_names = {name: f"{'deploy' if name == 'rtn' else 'method'}-{name}" for name in names}
    defs["deploy"] = _by_name(of_names, defs, OUTSIDE)
    defs["deploy"]["required"] = ["name"]
    defs["run"] = {**_without(run, "required"), "properties": properties}


def _add_cells(defs: dict[str, Schema]) -> None:
    """Cells, whose keys are dotted: `set`, `grid` and `search`."""
    defs["method"]["required"] = ["name"]
    entry = {"anyOf": [{"enum": registry.names("method")}, OUTSIDE, {"$ref": f"{_DEFS}method"}]}
    for config in (Range, Choices):
        defs[config.__name__] = _taken(config, defs)
    keys = {key: _any_of(places) for key, places in _dotted(defs).items()}
    tuned = {key: _dimension(value, defs) for key, value in keys.items() if key.partition(".")[0] != "monitor"}
    dimensions = {key: value for key, value in tuned.items() if value is not None}
    lists = {key: {"type": "array", "items": value} for key, value in keys.items()}
    for name, properties in (("set", keys), ("grid", lists), ("search", dimensions)):
        own: Schema = {_own_keys(defs): {}, OWN_KEYS: {}}
        defs[name] = {
            "type": "object",
            "properties": properties,
            "patternProperties": own,
            "additionalProperties": False,
        }
    cell = defs["CellConfig"]["properties"]
    cell["methods"] = _described(cell["methods"], _one_or_list(entry))
    for name in ("set", "grid", "search"):
        cell[name] = _described(cell[name], {"$ref": _DEFS + name})


def _own_keys(defs: Mapping[str, Schema]) -> str:
    """Dotted keys of methods from outside: `pull.strength`, for no section or method of the harness."""
    return rf"^(?!({'|'.join([*defs['run']['properties'], *registry.names('method')])})\.)[A-Za-z_]\w*\.\w+$"


def _dotted(defs: Mapping[str, Schema]) -> dict[str, list[str]]:
    """Where each dotted key of a run's settings has its schema; several places where components share a key."""
    found: dict[str, list[str]] = {}
    for key, place in _below("", "run", defs):
        found.setdefault(key, []).append(place)
    return dict(sorted(found.items()))


def _below(prefix: str, name: str, defs: Mapping[str, Schema]) -> Iterator[tuple[str, str]]:
    """The keys of a definition, and those of the sections in it."""
    for key, schema in defs[name].get("properties", {}).items():
        if (prefix, key) != ("monitor.deploy.", "name"):
            yield prefix + key, f"{_DEFS}{name}/properties/{key}"
        for section in _sections(schema):
            yield from _below(f"{prefix}{key}.", section, defs)
    for case in defs[name].get("allOf", ()):
        if target := case["then"].get("$ref"):
            inner = target.removeprefix(_DEFS)
            yield from ((key, place) for key, place in _below(prefix, inner, defs) if key != f"{prefix}name")
    if name == "run":
        for method in registry.names("method"):
            own = _below(f"{method}.", f"method-{method}", defs)
            yield from ((key, place) for key, place in own if key != f"{method}.name")


def _sections(schema: Schema) -> list[str]:
    """The definitions that a value may be."""
    refs = [schema, *schema.get("anyOf", ()), *schema.get("allOf", ())]
    return [each["$ref"].removeprefix(_DEFS) for each in refs if "$ref" in each]


def _dimension(value: Schema, defs: Mapping[str, Schema]) -> Schema | None:
    """What may be searched of a setting: a list of values and, of a number, a range. None: values are no scalars."""
    kinds = set()
    for ref in value.get("anyOf", [value]):
        name, _, key = ref["$ref"].removeprefix(_DEFS).partition("/properties/")
        schema = defs[name]["properties"][key]
        kinds |= {each.get("type", "word" if "enum" in each else "") for each in (schema, *schema.get("anyOf", ()))}
    if not kinds & {"integer", "number", "string", "boolean", "word"}:
        return None
    ranges = [{"$ref": f"{_DEFS}Range"}] if kinds & {"integer", "number"} else []
    return {"anyOf": [*ranges, {"type": "array", "items": value, "minItems": 1}, {"$ref": f"{_DEFS}Choices"}]}


def _any_of(places: list[str]) -> Schema:
    refs: list[Schema] = [{"$ref": place} for place in dict.fromkeys(places)]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _one_or_list(item: Schema) -> Schema:
    return {"anyOf": [*item["anyOf"], {"type": "array", "items": item, "minItems": 1}]}


def _described(old: Schema, new: Schema) -> Schema:
    """A schema in place of another, with that one's description and default."""
    return {**new, **{key: old[key] for key in ("description", "default") if key in old}}


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: each for key, each in mapping.items() if key not in keys}
