"""Of what kind a component is that a command is given by itself: by what its file defines. Imports torch."""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core import outside, registry
from harness.core.errors import UserError, unknown


def kind_and_name(reference: str) -> tuple[str, str]:
    """The kind of a component, of this package or from outside, and the name by which it is loaded.

    Raises UserError for an unknown name, and for a file that is no component.
    """
    for kind in registry.KINDS:
        if reference.partition(":")[0] in registry.names(kind) or reference in outside.registered(kind):
            return kind, registry.check(kind, reference)
    registry.refuse_sweep_file("component", reference)
    if not outside.is_reference(reference):
        raise unknown("component", reference, (name for kind in registry.KINDS for name in registry.known(kind)))
    name = outside.resolve("component", reference, Path())
    kind = _kind_of(outside.load("component", name), outside.get("component", name).path, reference)
    return kind, registry.check(kind, name)


def _kind_of(found: Any, path: Path, reference: str) -> str:
    from torch import nn

    from harness.methods import Method
    from harness.models._outside import networks_in
    from harness.tasks.base import Task

    own = list(vars(found).values()) if isinstance(found, ModuleType) else [found]
    for kind, base in (("method", Method), ("task", Task)):
        classes = [each for each in own if isinstance(each, type) and issubclass(each, base)]
        if any(each.__module__ != base.__module__ for each in classes):
            return kind
    if isinstance(found, ModuleType):
        for kind, functions in (("model", ("build",)), ("data set", ("read", "load"))):
            if any(hasattr(found, each) for each in functions):
                return kind
        there = " or ".join(f"{reference}:{name}" for name in networks_in(found))
        near = f"; did you mean {there}?" if there else ""
        raise UserError(
            f"{path}: no component: it defines no Method, no Task, no build (a model) and no read or load (a data set)"
            f"{near}"
        )
    if isinstance(found, type) and issubclass(found, nn.Module):
        return "model"
    returned = inspect.signature(found).return_annotation if callable(found) else None
    return "data set" if getattr(returned, "__name__", returned) in ("Raw", "harness.data.Raw") else "model"
