"""Methods, one per file. Other packages reach them by `find` and `build_stack` only; no code there names a method."""

from collections.abc import Iterable, Sequence
from typing import Any

from harness.core import registry
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.methods.base import Context, Method, MethodConfig

__all__ = ["build_stack", "check_norms", "find"]


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


def check_norms(names: Iterable[str], quantizer: QuantizerConfig) -> None:
    """Raise UserError for a method that does not go with quantized norm layers, where these are quantized."""
    refusing = [name for name in names if find(name).refuses_norms] if quantizer.quantizes_norms else []
    for name in refusing:
        able = [each for each in registry.names("method") if not find(each).refuses_norms]
        raise UserError(
            f"quantizer.norms: 'quantized' does not go with method {name!r}, which {find(name).refuses_norms} "
            f"(legal: float, or methods among {', '.join(able)})"
        )


def build_stack(configs: Sequence[dict[str, Any] | MethodConfig], context: Context) -> list[Method]:
    """The methods of a run, in order, each with its checked settings."""
    stack = []
    entries = [entry.model_dump() if isinstance(entry, MethodConfig) else dict(entry) for entry in configs]
    check_norms([entry["name"] for entry in entries], context.quantizer)
    for plain in entries:
        method = find(plain["name"])
        stack.append(method(method.Config.model_validate(plain), context))
    return stack
