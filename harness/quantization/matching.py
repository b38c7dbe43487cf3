"""Mappings of layer names and globs: which entry decides about a layer, and what is refused."""

import inspect
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
                f"{wanted}lambda layer: {_call_of(build)}"
            )
        if not _takes_a_layer(build):
            raise UserError(f"{slot}: the function must take a layer, and nothing else: lambda layer: ...")


def check_no_filling(given: Mapping[str, Any], slots: Iterable[str]) -> None:
    """Raises UserError where an argument, by name, has what fills a slot: it was given without the slot's name."""
    for name, value in given.items():
        if isinstance(value, Mapping) or callable(value):
            what = type(value).__name__ if isinstance(value, nn.Module | Mapping) else "a function"
            raise UserError(
                f"{name}: {what} was given; what fills a slot is given by the name of the slot, as a function: "
                f"weight_quantizer=lambda layer: {_call_of(value)} (slots: {', '.join(slots)})"
            )


def _call_of(module: Any) -> str:
    """`LSQQuantizer(4)`: what makes another module of the kind, as far as it can be told."""
    if not isinstance(module, nn.Module):
        return "..."
    bits = getattr(module, "bits", None)
    return f"{type(module).__name__}({bits if isinstance(bits, int) else '...'})"


def _takes_a_layer(build: Callable[..., Any]) -> bool:
    try:
        inspect.signature(build).bind(None)
    except TypeError:
        return False
    except ValueError:  # it does not tell what it takes
        return True
    return True


def function_of(given: Any, name: str) -> Callable[..., nn.Module] | None:
    """What fills a layer's slot; None where a mapping has nothing for it."""
    if not isinstance(given, Mapping):
        build: Callable[..., nn.Module] = given
        return build
    key = deciding(given, name)
    return None if key is None else given[key]
