"""Dotted keys of nested settings: `train.learning_rate`, `cells.0.search.x.low`."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.core.errors import UserError


def set_dotted(settings: dict[str, Any] | list[Any], key: str, value: Any) -> None:
    """Set a dotted key in place; sections that are missing are made, places in a list must be there.

    Raises UserError for a key that leads through a value, and for a place that a list does not have.
    """
    *sections, last = key.split(".")
    inner: Any = settings
    for part in sections:
        inner = inner[_place(inner, part)] if isinstance(inner, list) else inner.setdefault(part, {})
        if not isinstance(inner, dict | list):
            raise UserError(f"{part} is a value, not a section")
    inner[_place(inner, last) if isinstance(inner, list) else last] = value


def _place(values: list[Any], part: str) -> int:
    if not (part.isdigit() and int(part) < len(values)):
        raise UserError(f"the list has places 0 to {len(values) - 1}, not {part!r}")
    return int(part)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted keys; an empty mapping counts as a value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
