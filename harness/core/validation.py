"""Pydantic's errors as messages that say what to change."""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.core.errors import nearest


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """All mistakes of a pydantic error, one per line: field, value, what is legal, the nearest spelling."""
    lines = []
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    for item in items:
        if item["type"] == "too_short" and any(
            len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places
        ):
            continue  # only because its items were refused
        place = ".".join(str(part) for part in item["loc"])
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            legal = _legal_keys(model, item["loc"][:-1])
            lines.append(f"{prefix}{place}: unknown key{nearest(item['loc'][-1], legal)} (legal: {', '.join(legal)})")
        elif item["type"] == "missing":
            lines.append(f"{prefix}{place}: missing{_legal_values(model, item['loc'])}")
        elif item["type"] == "tuple_type":
            lines.append(
                f"{prefix}{place}: {_shown(item['input'])}: write a list, such as {_as_list(place, item['input'])}"
            )
        elif place:
            lines.append(f"{prefix}{place}: {_shown(item['input'])}: {message}")
        else:
            lines.append(f"{prefix}{message}")
    return "\n".join(lines)


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
