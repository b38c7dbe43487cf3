"""In the JSON Schema of sweep files: components from outside, whose settings no schema can list."""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]
#: A component from outside: a file, a module, or what either names.
OUTSIDE: Schema = {"type": "string", "pattern": r"\.py(:\w+)?$|^\w+(\.\w+)*:\w+$|^\w+(\.\w+)+$"}
#: Sections of a run whose component may be one.
SECTIONS = ("model", "data")
#: Dotted keys of cells that may be settings of its own.
OWN_KEYS = rf"^({'|'.join(SECTIONS)})\.\w+$"
_VARIED = ("set", "grid", "search")


def only_known(defs: dict[str, Schema]) -> list[Schema]:
    """Conditions on a whole file: cells have no unknown `model.key` where all its models are of the harness.

    defs: has `set`, `grid` and `search`, which accept OWN_KEYS; gets what the conditions refer to.
    """
    defs["outside"] = OUTSIDE
    for section in SECTIONS:
        defs[f"{section}-outside"] = _having("name", _ref("outside"))
        places = {section: f"{section}-outside", f"{section}.name": "outside"}
        defs[f"{section}-set"] = {"anyOf": [_having(key, _ref(place)) for key, place in places.items()]}
        defs[f"{section}-varied"] = {"anyOf": [_varied(key, _ref(place)) for key, place in places.items()]}
    return [{"if": {"not": _named(section)}, "then": _keys(section, defs)} for section in SECTIONS]


def _keys(section: str, defs: Mapping[str, Schema]) -> Schema:
    def known(varied: str) -> Schema:
        there = (key.replace(".", r"\.") for key in defs[varied]["properties"] if key.startswith(f"{section}."))
        # A pattern rather than a list of names, which would be one a line.
        return {"propertyNames": {"pattern": rf"^(?!{section}\.)|^({'|'.join(there)})$"}}

    of_cell = {"properties": {varied: known(varied) for varied in _VARIED}}
    return {"properties": {"grid": known("grid"), "cells": {"items": of_cell}}}


def _named(section: str) -> Schema:
    """Whether a file names a component from outside for a section, wherever it may."""
    varied = _ref(f"{section}-varied")
    in_cell = [_having("set", _ref(f"{section}-set")), _having("grid", varied), _having("search", varied)]
    return {
        "anyOf": [
            _having("base", _having(section, _ref(f"{section}-outside"))),
            _having("grid", varied),
            _having("cells", {"contains": {"anyOf": in_cell}}),
        ]
    }


def _varied(key: str, value: Schema) -> Schema:
    """A grid, or a search, that has the value among those of a key."""
    among = {"type": "array", "contains": value}
    return _having(key, {"anyOf": [among, _having("choices", among)]})


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _having(key: str, value: Schema) -> Schema:
    return {"type": "object", "properties": {key: value}, "required": [key]}
