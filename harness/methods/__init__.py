"""Methods, one per file. Other packages reach them by `find` and `build_stack` only; no code there names a method."""

from collections.abc import Iterable, Sequence
from typing import Any

from harness.core import outside, registry
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.methods._outside import method, methods_in
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step

__all__ = ["Calibration", "Context", "Method", "MethodConfig", "Step", "build_stack", "check_norms", "find"]


def find(name: str) -> type[Method]:
    """The Method subclass of `methods/<name>.py`, or one from outside.

    Raises UserError for an unknown name, and for a file that does not define exactly one.
    """
    found = registry.check("method", name)
    if outside.is_name(found):
        return method(found)
    own = methods_in(registry.load("method", found))
    if len(own) != 1:
        raise UserError(f"harness/methods/{name}.py must define one Method subclass, not {len(own)}")
    return own[0]


def check_norms(names: Iterable[str], quantizer: QuantizerConfig) -> None:
    """Raise UserError for a method that does not go with quantized norm layers, where these are quantized."""
    refusing = [name for name in names if find(name).refuses_norms] if quantizer.quantizes_norms else []
    for name in refusing:
        able = [each for each in registry.names("method") if not find(each).refuses_norms]
        raise UserError(
            f"quantizer.norms: 'quantized' does not go with method {registry.shown(name)!r}, which "
            f"{find(name).refuses_norms} (legal: float, or methods among {', '.join(able)})"
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
