"""`--set key=value`: replaces a key of a sweep file before it is checked."""

from typing import Any

from harness import yaml_file
from harness.config import RunConfig
from harness.errors import UserError


def apply(raw: dict[str, Any], override: str) -> None:
    """Set a dotted key (`tune.trials=4`, `cells.0.search.x.low=1`) of a sweep's plain content, in place.

    A run setting (`data.root=PATH`) is short for that of the sweep's `base`. Raises UserError for a malformed
    override; whether the key exists is checked with the whole file.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write key=value, for example tune.trials=4")
    try:
        value = yaml_file.parse(text)
    except UserError as error:
        raise UserError(f"--set {override!r}: {error}") from None
    place: Any = raw
    parts = key.split(".")
    if parts[0] in RunConfig.model_fields:
        parts.insert(0, "base")
    for part in parts[:-1]:
        if isinstance(place, list):
            place = place[_place(place, part, override)]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise UserError(f"--set {override!r}: {part} is a value, not a section")
    place[_place(place, parts[-1], override) if isinstance(place, list) else parts[-1]] = value


def _place(values: list[Any], part: str, override: str) -> int:
    if not (part.isdigit() and int(part) < len(values)):
        raise UserError(f"--set {override!r}: the list has places 0 to {len(values) - 1}, not {part!r}")
    return int(part)
