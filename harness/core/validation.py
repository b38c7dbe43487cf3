"""Pydantic's errors as messages that say what to change."""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.core.errors import nearest


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """All mistakes of a pydantic error, one per line: field, value, what is legal, the nearest spelling."""
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    # A list that is too short only because its items were refused is no mistake of its own.
    items = [item for item in items if item["type"] != "too_short" or not _is_within(item["loc"], places)]
    return "\n".join(prefix + line for line in dict.fromkeys(_lines(items, model)))


def _is_within(place: tuple[Any, ...], places: list[tuple[Any, ...]]) -> bool:
    return any(len(each) > len(place) and each[: len(place)] == place for each in places)


def _lines(items: list[Any], model: type[BaseModel]) -> Iterator[str]:
    """A line for each mistake. Of a value that fits no branch of a union, pydantic has mistakes for each branch."""
    branches: dict[tuple[Any, ...], list[tuple[tuple[Any, ...], Any]]] = {}
    for number, item in enumerate(items):
        labels = _labels(model, item["loc"])
        path = tuple(part for index, part in enumerate(item["loc"]) if index not in labels)
        union = item["loc"][: labels[0]] if labels else (*item["loc"], number, "no union")
        branches.setdefault(union, []).append((path, item))
    for found in branches.values():
        shortest = min(len(path) for path, _ in found)
        deeper = [(path, item) for path, item in found if len(path) > shortest]
        if len(found) > 1 and not deeper:
            yield _no_branch(found, model)
        else:  # a branch whose parts are wrong is the one that was meant
            yield from (_line(path, item, model) for path, item in deeper or found)


def _line(path: tuple[Any, ...], item: Any, model: type[BaseModel]) -> str:
    place, shown = ".".join(str(part) for part in path), _shown(item["input"])
    if item["type"] == "extra_forbidden":
        legal = _legal_keys(model, path[:-1])
        return f"{place}: unknown key{nearest(path[-1], legal)} (legal: {', '.join(legal)})"
    if item["type"] == "missing":
        return f"{place}: missing{_legal_values(model, path)}"
    if item["type"] == "tuple_type":
        return f"{place}: {shown}: write a list, such as {_as_list(place, item['input'])}"
    if words := _words(item):
        return f"{place}: {shown}: unknown value{_near(item['input'], words)} (legal: {', '.join(words)})"
    message = _message(path, item, model)
    return f"{place}: {shown}: {message}" if place else message


def _no_branch(found: list[tuple[tuple[Any, ...], Any]], model: type[BaseModel]) -> str:
    """One line on a value that is of no kind that a union has."""
    path, first = found[0]
    messages = list(dict.fromkeys(_message(path, item, model) for _, item in found))
    begins = "Input should be "
    if all(message.startswith(begins) for message in messages):
        kinds = [message.removeprefix(begins) for message in messages]
        messages = [begins + " or ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[:-1] else kinds)]
    words = [word for _, item in found for word in _words(item)]
    place = ".".join(str(part) for part in path)
    return f"{place}: {_shown(first['input'])}: {'; '.join(messages)}{_near(first['input'], words)}"


def _message(path: tuple[Any, ...], item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "model_type":
        return f"Input should be a section (keys: {', '.join(_legal_keys(model, path))})"
    return str(item["msg"]).removeprefix("Value error, ")


def _words(item: Any) -> list[str]:
    """The words that a field takes, of a mistake that is none of them; pydantic lists them as `8, 'a' or 'b'`."""
    if item["type"] not in ("literal_error", "enum"):
        return []
    return [word.strip("'") for word in re.split(r", | or ", item["ctx"]["expected"])]


def _near(value: object, words: list[str]) -> str:
    return nearest(value, words) if isinstance(value, str) and value not in words else ""


def _labels(model: type[BaseModel], path: tuple[Any, ...]) -> list[int]:
    """Where in a mistake's place the name of a union's branch stands, which is no part of what was written."""
    found: list[int] = []
    kinds: list[Any] = [model]
    for index, part in enumerate(path):
        kinds = [member for kind in kinds for member in _members(kind)]
        named = [kind for kind in kinds if _is_label(part, kind)] if len(kinds) > 1 else []
        if named:
            found.append(index)
        kinds = named or [inner for kind in kinds for inner in _inside(kind, part)]
    return found


def _members(kind: Any) -> list[Any]:
    """The kinds of value that an annotation allows, besides null."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for part in get_args(kind) for member in _members(part)]
    return [] if kind is type(None) else [kind]


def _is_label(part: Any, kind: Any) -> bool:
    """Whether pydantic names a branch so: `str`, `Objective`, `constrained-int`, `literal['auto']`."""
    if get_origin(kind) is Literal:
        return str(part).startswith("literal[")
    name = getattr(get_origin(kind) or kind, "__name__", "")
    return part in (name, f"constrained-{name}") or str(part).startswith((f"{name}[", "function-"))


def _inside(kind: Any, part: Any) -> list[Any]:
    """The annotations of a part of a value: of a field, of an item of a list, of a value of a mapping."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind.model_fields[part].annotation] if part in kind.model_fields else []
    arguments = [inner for inner in get_args(kind) if inner is not Ellipsis]
    return arguments[-1:] if isinstance(part, str) else arguments


def _as_list(place: str, value: object) -> str:
    if place.endswith("seeds") and isinstance(value, int) and 1 < value <= 20:
        return f"[{value}], which is one seed, or {list(range(value))}, which are {value}"
    return f"[{value}]"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _legal_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    models = [model]
    for part in path:
        fields = [found.model_fields[str(part)] for found in models if str(part) in found.model_fields]
        # A place in a list, or a key of a mapping such as `search`, leads to no other section.
        models = [found for field in fields for found in _models_in(field.annotation)] if fields else models
    return sorted({name for found in models for name in found.model_fields})


def _legal_values(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    """` (legal: a, b)` for a field that takes one of a few words."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        inner = _models_in(field.annotation) if field else []
        model = inner[0] if inner else model
    field = model.model_fields.get(str(path[-1]))
    words = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return f" (legal: {', '.join(map(str, words))})" if words else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
