"""A sweep file without what is wrong in it, so that what is wrong in the rest can be told, too."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from harness.core.validation import explain
from harness.sweep import levels
from harness.sweep.config import SweepConfig, name_mistakes
from harness.training.config import RunConfig

#: What stands in for sections that are wrong: legal with anything else in a file.
_LEGAL: dict[str, Any] = {"name": "x", "tune": {"trials": 1, "seed": 2**32 - 2}, "final": {"seeds": [2**32 - 1]}}
_NAMED: dict[str, Any] = {"model": {"name": "mlp5"}, "data": {"name": "digits"}}
#: Settings of `base` without which others are refused.
_NEEDED = ("target_bit", "watch_bit", "also_watch", "monitor", "data", "model", "deploy.bits", "deploy.figures")


def legal_part(raw: Mapping[str, Any]) -> tuple[SweepConfig | None, list[str], dict[int, str]]:
    """The sweep without what is wrong in its file; a line for each mistake; names of cells whose methods are wrong.

    Names are by place in `cells`, as the file has the methods; such a cell has the method `none` instead. The sweep is
    None where too little is left.
    """
    left: dict[str, Any] = deepcopy(dict(raw))
    found: list[str] = []
    names: dict[int, str] = {}
    for _ in range(4):
        try:
            return SweepConfig.model_validate(left), found, names
        except ValidationError as error:
            before = deepcopy(left)
            found += levels.hinted(explain(error, SweepConfig)).splitlines()
            for item in error.errors(include_url=False):
                _repair(left, item["loc"], item["type"], names)
            if left == before:
                break
    return None, list(dict.fromkeys(found)), names


def legal_base(spec: SweepConfig) -> tuple[SweepConfig, list[str]]:
    """The sweep with known keys and names in `base`, and a line for each that is unknown."""
    base, found = dict(spec.base), []
    for key, mistake in name_mistakes(spec.base):
        found.append(levels.hinted(mistake))
        if key in _NAMED:
            base[key] = _NAMED[key]
        else:
            base.pop(key, None)
    return spec.model_copy(update={"base": base}), found


def take_out(settings: dict[str, Any], line: str) -> bool:
    """Take the setting that a message is about (`base.train.epochs: ...`) out of `base`; whether it could be."""
    place = line.removeprefix("base.").partition(": ")[0]
    if place.startswith(_NEEDED):
        return False
    *sections, last = place.split(".")
    inner: Any = settings
    for part in sections:
        inner = inner.get(part)
        if not isinstance(inner, dict):
            return False
    if place == "deploy.scale":  # it has no default
        inner["scale"] = "recalibrate"
        return True
    return inner.pop(last, None) is not None


def _repair(raw: dict[str, Any], place: tuple[Any, ...], kind: str, names: dict[int, str]) -> None:
    """Take out what is at a place of a sweep, or put in what is legal."""
    if not place:  # keys that contradict each other
        raw.update(objective="mean", pruner="none", sampler="tpe", storage="journal", final=_LEGAL["final"])
        raw["tune"] = {**raw["tune"], "seed": _LEGAL["tune"]["seed"]}
        return
    top, section = place[0], raw.get(place[0])
    if top == "cells":
        if len(place) > 2 and isinstance(section, list) and isinstance(section[place[1]], dict):
            section[place[1]] = _repaired_cell(section[place[1]], place[1:], names)
            if place[2] in ("search", "methods") and isinstance(raw.get("tune"), dict):
                raw["tune"]["trials"] = 1  # with which a cell may search something or nothing
    elif top == "grid" and len(place) > 1 and isinstance(section, dict):
        section[place[1]] = [section[place[1]]]
    elif kind == "extra_forbidden" and len(place) > 1 and isinstance(section, dict):
        section.pop(place[1], None)
    elif top == "base":
        return
    elif top in _LEGAL:
        raw[top] = _LEGAL[top]
    elif top == "objective":
        raw.update(objective="mean", pruner="none")
    else:
        raw.pop(top, None)


def _repaired_cell(cell: dict[str, Any], place: tuple[Any, ...], names: dict[int, str]) -> dict[str, Any]:
    """An entry of `cells` without a mistake. place: from its number on."""
    number, part = place[:2]
    cell = deepcopy(cell)
    if part == "methods":
        names[number] = _called(cell.get("methods"), number)
        for varied in ("set", "grid", "search"):
            if isinstance(cell.get(varied), dict):  # without the settings of its methods
                cell[varied] = {key: each for key, each in cell[varied].items() if _head(key) in RunConfig.model_fields}
        cell["methods"] = "none"
    elif part == "grid" and len(place) > 2 and isinstance(cell[part], dict):
        cell[part][place[2]] = [cell[part][place[2]]]
    elif len(place) > 2 and isinstance(cell.get(part), dict):
        cell[part].pop(place[2], None)
    else:
        cell.pop(part, None)
    return cell


def _head(key: str) -> str:
    return key.partition(".")[0]


def _called(methods: Any, number: int) -> str:
    """The methods of a cell as its id has them, as far as they are names."""
    entries = methods if isinstance(methods, list) else [methods]
    written = [each.get("name") if isinstance(each, dict) else each for each in entries]
    names = [each for each in written if isinstance(each, str)]
    return "+".join(names) if names and len(names) == len(written) else f"cells.{number}"
