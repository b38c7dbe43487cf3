"""The base of every configuration section: frozen, strict, and aware of what names a run."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from harness.core.bits import MAX_BITS, MIN_BITS, BitWidths, PlainPoint
from harness.core.errors import UserError
from harness.core.layer_points import point_of
from harness.core.validation import explain

#: `Field(json_schema_extra=NOT_IDENTITY)`: the field never changes a run's identity (paths, devices).
NOT_IDENTITY: dict[str, Any] = {"identity": "never"}
#: For fields added after the first release: they count only once they leave their default.
IDENTITY_IF_CHANGED: dict[str, Any] = {"identity": "if_changed"}


class StrictConfig(BaseModel):
    """A frozen configuration section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _number_is_a_number(cls, value: Any, handler: Any, info: ValidationInfo) -> Any:
        """Refuse `true` for 1 and '3' for 3, which pydantic would convert."""
        checked = handler(value)
        if _is_numeric(cls, info.field_name or ""):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, bool | str):
                    raise ValueError(f"{item!r} is not a number")
        return checked

    def identity(self) -> dict[str, Any]:
        """What of this section names a run, as plain JSON values."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            rule, value = extra.get("identity"), getattr(self, name)
            if rule == "never" or (rule == "if_changed" and value == field.get_default(call_default_factory=True)):
                continue
            kept[name] = _plain(value)
        return kept


def by_name(value: Any) -> Any:
    """A name alone in place of a section that holds a name and nothing else."""
    return {"name": value} if isinstance(value, str) else value


def listed(value: Any) -> Any:
    """One name or section in place of a list of one."""
    return [value] if isinstance(value, str | Mapping) else value


@cache  # a sweep's check asks a hundred thousand times
def _is_numeric(section: type[StrictConfig], field: str) -> bool:
    """Whether a field takes numbers, and neither text nor switches."""
    kinds = _scalars(section.model_fields[field].annotation)
    return bool(kinds & {int, float}) and not kinds & {bool, str}


def _scalars(annotation: Any) -> set[Any]:
    """The plain types that a field's annotation names, inside unions and tuples too."""
    if get_origin(annotation) is Literal:
        return {str}
    inner = get_args(annotation)
    return {kind for part in inner for kind in _scalars(part)} if inner else {annotation}


def _plain(value: Any) -> Any:
    if isinstance(value, StrictConfig):
        return value.identity()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


class QuantizerConfig(StrictConfig):
    """The default quantizer: how float weights are rounded, and what the tracker and regularizer watch."""

    granularity: Literal["tensor", "channel"] = Field(
        "tensor", description="one step per tensor, or per output channel"
    )
    range: Literal["max", "mse"] = Field(
        "max", description="max: up to max|w|; mse: clipped where the squared error is least"
    )
    norms: Literal["float", "quantized"] = Field(
        "float",
        description="weights of norm layers; quantized: one step each, as the paper's released code has them",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )

    @property
    def quantizes_norms(self) -> bool:
        """Whether the weights of norm layers are quantized, too."""
        return self.norms == "quantized"


Section = TypeVar("Section", bound=StrictConfig)


def section(value: Section | Mapping[str, Any] | None, kind: type[Section], name: str) -> Section:
    """What a library call was given as `name`; None is the default. Raises UserError for anything else."""
    if isinstance(value, kind) or value is None:
        return value or kind()
    if not isinstance(value, Mapping):
        legal = ", ".join(kind.model_fields)
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        what = f"neither {article} {kind.__name__} nor a mapping of its settings"
        raise UserError(f"{name}: {value!r} is {what} ({legal})")
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        raise UserError(explain(error, kind, f"{name}.")) from None


def _bits(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"no bit-width (legal: whole numbers from {MIN_BITS} to {MAX_BITS})")
    return value


_BITS_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": MIN_BITS, "maximum": MAX_BITS}
WeightBits = Annotated[int, BeforeValidator(_bits), WithJsonSchema(_BITS_SCHEMA)]


def _point(value: Any) -> Any:
    try:
        return BitWidths.of(value).plain
    except UserError as error:
        raise ValueError(str(error).partition(": ")[2]) from None


_DIGIT = f"[{MIN_BITS}-{MAX_BITS}]"
_POINT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        _BITS_SCHEMA,
        {"type": "string", "pattern": f"^([wW]{_DIGIT}([aA]{_DIGIT})?([kK][vV]{_DIGIT})?|[fF][lL][oO][aA][tT])$"},
    ]
}
#: A deployment point in its plain form: 4, "w4a8" or "float".
Point = Annotated[PlainPoint, BeforeValidator(_point), WithJsonSchema(_POINT_SCHEMA)]


def _deployed_point(value: Any) -> Any:
    return point_of(value).plain if isinstance(value, Mapping) else _point(value)


#: The same, or points by layer in theirs (`LayerPoints.plain`).
DeployedPoint = Annotated[
    PlainPoint | dict[str, Any],
    BeforeValidator(_deployed_point),
    WithJsonSchema({"anyOf": [*_POINT_SCHEMA["anyOf"], {"type": "object", "minProperties": 1}]}),
]


class ActivationsConfig(StrictConfig):
    """How inputs of quantized layers, and operands of attention, are rounded at points such as w4a8."""

    granularity: Literal["tensor", "token"] = Field(
        "tensor",
        description="one static range per layer input, from calibration; token: one per row, found at run time",
    )
    range: Literal["max", "percentile", "mse"] = Field(
        "mse", description="of a static range: largest value, percentile, or where the squared error is least"
    )
    percentile: float = Field(99.99, gt=50, le=100, description="of range: percentile; values beyond it are clipped")
    calibration_batches: int = Field(8, ge=1, le=100_000, description="training batches that ranges are taken from")
    first_last: Literal[8, "same", "float"] = Field(
        8, description="inputs of the first and the last layer: 8 bits, as the others, or float"
    )
    attention: bool = Field(True, description="whether queries, keys, scores and values are rounded too")

    @model_validator(mode="after")
    def _ranges_of_tokens(self) -> Self:
        if self.granularity == "token" and self.range != "max":
            raise ValueError(f"range: {self.range} is for granularity: tensor; granularity: token wants range: max")
        return self


class KeyValueConfig(StrictConfig):
    """How keys and values are rounded at points such as w4kv4: each token by itself, between its extremes."""

    group: int = Field(
        32, ge=1, le=4096, description="values of a head's key or value that share a range, found at run time"
    )
