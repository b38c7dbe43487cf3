"""Mappings of layer names and globs: which entry decides about a layer, and what is refused."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from harness.core.errors import UserError, unknown


def deciding(mapping: Mapping[str, Any], name: str) -> str | None:
    """The key that decides about a layer: its name, else the first glob that matches, with `*` last; None for none."""
    if name in mapping:
        return name
    found = (key for key in mapping if key != "*" and fnmatchcase(name, str(key)))
    return next(found, "*" if "*" in mapping else None)


def check_keys(mapping: Mapping[str, Any], layers: Iterable[str], field: str) -> None:
    """Raises UserError, naming `field`, for a name or glob that matches no layer."""
    names = list(layers)
    for key in mapping:
        if not any(name == key or fnmatchcase(name, str(key)) for name in names):
            raise unknown(f"layer in {field}", key, names)


def check_functions(slot: str, given: Any) -> None:
    """Raises UserError where a slot is to be filled by anything but a function, or by a mapping of layers to these."""
    for key, build in given.items() if isinstance(given, Mapping) else [(None, given)]:
        if build is None and key is not None:
            continue
        if isinstance(build, nn.Module) or not callable(build):
            where, wanted = (slot, f"{slot}=") if key is None else (f"{slot}: {key}", f"{key!r}: ")
            raise UserError(
                f"{where}: {type(build).__name__} is not a function; every layer needs a module of its own, so write "
                f"{wanted}lambda layer: ..."
            )


def function_of(given: Any, name: str) -> Callable[..., nn.Module] | None:
    """What fills a layer's slot; None where a mapping has nothing for it."""
    if not isinstance(given, Mapping):
        build: Callable[..., nn.Module] = given
        return build
    key = deciding(given, name)
    return None if key is None else given[key]
