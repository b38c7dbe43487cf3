"""Methods from outside: a file with one `Method` subclass, or such a class by name."""

from functools import cache
from types import ModuleType

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.signature import named
from harness.methods.base import Method


@cache
def method(name: str) -> type[Method]:
    """The class, with a Config that has its name by content. Raises UserError for what is no Method."""
    found, path = registry.load("method", name), outside.get("method", name).path
    where = f"method {registry.shown(name)!r} ({path})"
    if isinstance(found, ModuleType):
        own = methods_in(found)
        if len(own) != 1:
            names = ", ".join(f"{path.name}:{each.__name__}" for each in own)
            advice = f"name one: {names}" if own else "subclass harness.methods.Method"
            raise UserError(f"{where}: must define one Method subclass, not {len(own)}; {advice}")
        found = own[0]
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{where}: {found!r} is no subclass of harness.methods.Method")
    members = {"Config": named(found.Config, name), "__module__": found.__module__, "__doc__": found.__doc__}
    return type(found.__name__, (found,), members)


def methods_in(module: ModuleType) -> list[type[Method]]:
    """The Method subclasses that a module defines itself."""
    found = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, Method)]
    return [item for item in found if item.__module__ == module.__name__]
