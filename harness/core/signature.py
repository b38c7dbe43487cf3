"""Settings of components from outside: from a callable's signature, or from a `Config` of its own."""

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field, create_model
from pydantic.errors import PydanticUserError

from harness.core.config_base import StrictConfig
from harness.core.errors import UserError

Config = TypeVar("Config", bound=StrictConfig)
#: What a value in a sweep file can be.
_PLAIN = (bool, int, float, str, type(None))


def named(config: type[Config], name: str) -> type[Config]:
    """A Config whose name is that of a component from outside, whatever its file says (`Literal["noise"]`)."""
    described = Field(name, description="the component, by the content of its file")
    return create_model(config.__name__, __base__=config, __module__=config.__module__, name=(str, described))


def from_signature(
    target: Callable[..., Any], base: type[Config], name: str, where: str, filled: str, given: int = 0
) -> type[Config]:
    """A Config with a field for each parameter of a callable, from its type and default.

    given: how many positional parameters the harness fills in itself, the first ones; it also fills in one that is
    called as `filled` says. where: the component, for messages. Raises UserError for a parameter without a
    type, of a type that no sweep file can hold, or with the name of a setting that every such component has.
    """
    fields: dict[str, Any] = {}
    hints = _hints(target, where)
    for parameter in settings_of(target, filled, given):
        place = f"{where}: parameter {parameter.name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"{where}: {parameter} says no names: write its settings into the signature, with types")
        if parameter.name not in hints:
            raise UserError(f"{place} has no type; write {parameter.name}: int, float, str, bool or the like")
        if not _plain(hints[parameter.name]):
            raise UserError(f"{place}: no sweep file holds a {hints[parameter.name]} (int, float, str, bool, lists)")
        if parameter.name in base.model_fields:
            legal = ", ".join(base.model_fields)
            raise UserError(f"{place}: that is a setting of every component of its kind ({legal}); rename it")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    try:
        return named(create_model(f"{base.__name__}Of", __base__=base, **fields), name)
    except PydanticUserError as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None


def settings_of(target: Callable[..., Any], filled: str, given: int = 0) -> list[inspect.Parameter]:
    """The parameters of a callable that a sweep sets."""
    found = list(inspect.signature(target).parameters.values())[given:]
    return [each for each in found if each.name != filled]


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name."""
    return name in inspect.signature(target).parameters


def _hints(target: Callable[..., Any], where: str) -> dict[str, Any]:
    of = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return get_type_hints(of, include_extras=True)
    except (NameError, TypeError) as error:
        raise UserError(f"{where}: its types cannot be read: {error}") from None


def _plain(annotation: Any) -> bool:
    """Whether YAML can hold values of a type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal or annotation in _PLAIN:
        return True
    if origin is Annotated:
        return _plain(inner[0])
    containers: Sequence[Any] = (tuple, list, dict, Union, types.UnionType)
    return origin in containers and all(each is ... or _plain(each) for each in inner)
