"""Methods, one per file. Other packages reach them by `find` and `build_stack` only; no code there names a method."""

from collections.abc import Sequence
from typing import Any

from harness.core import registry
from harness.core.errors import UserError
from harness.methods.base import Context, Method, MethodConfig

__all__ = ["build_stack", "find"]


def find(name: str) -> type[Method]:
    """The Method subclass of `methods/<name>.py`.

    Raises UserError for an unknown name, and for a file that does not define exactly one.
    """
    module = registry.load("method", name)
    own = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise UserError(f"harness/methods/{name}.py must define one Method subclass, not {len(own)}")
    return own[0]


def build_stack(configs: Sequence[dict[str, Any] | MethodConfig], context: Context) -> list[Method]:
    """The methods of a run, in order, each with its checked settings."""
    stack = []
    for entry in configs:
        plain = entry.model_dump() if isinstance(entry, MethodConfig) else dict(entry)
        method = find(plain["name"])
        stack.append(method(method.Config.model_validate(plain), context))
    return stack
