"""The components that a configuration names: their settings, and those from outside by their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.validation import explain

#: The run settings that name components, by dotted key, and the kind.
NAMING = {
    "model": "model",
    "model.name": "model",
    "data": "data set",
    "data.name": "data set",
    "tasks": "task",
    "methods": "method",
    "deploy.methods": "method",
    "monitor.deploy": "method",
    "monitor.deploy.name": "method",
}


def config_class(kind: str, name: str) -> type[BaseModel]:
    """The Config of a method, model or data set. Imports its file."""
    from harness import data, models

    if kind == "method":
        from harness.methods import find

        return find(name).Config
    found: type[BaseModel] = (models if kind == "model" else data).find(name).Config
    return found


def component(kind: str, raw: Mapping[str, Any], where: str = "") -> Any:
    """The checked Config of a method, model or data set, from its plain settings.

    Raises UserError naming the setting. where: how its message begins. Imports the component's file; torch with it for
    methods and timm's models.
    """
    name = registry.check(kind, str(raw["name"]))
    config_type = config_class(kind, name)
    try:
        return config_type.model_validate({**raw, "name": name})
    except ValidationError as error:
        raise UserError(explain(error, config_type, f"{where}{kind} {registry.shown(name)!r}: ")) from None


def located(settings: Mapping[str, Any], base: Path, prefix: str = "") -> dict[str, Any]:
    """Run settings, nested or by dotted key, with components from outside by their names.

    base: the folder that paths are relative to. What names no such component stays as it is, legal or not.
    """
    found = {}
    for key, value in settings.items():
        if kind := NAMING.get(prefix + key):
            found[key] = _located(kind, value, base)
        else:
            inside = isinstance(value, Mapping)
            found[key] = located(value, base, f"{prefix}{key}.") if inside else value
    return found


def _located(kind: str, value: Any, base: Path) -> Any:
    """A name, a section with one, or a list (of lists) of them."""
    if isinstance(value, str):
        ours = value.partition(":")[0] in registry.names(kind)
        return registry.check(kind, value, base) if not ours and outside.is_reference(value) else value
    if isinstance(value, Mapping):
        names = {key: _located(kind, value[key], base) for key in ("name", "choices") if key in value}
        return {**value, **names}
    return [_located(kind, each, base) for each in value] if isinstance(value, list | tuple) else value
