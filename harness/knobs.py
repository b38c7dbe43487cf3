"""The base of every configuration section: frozen, strict, and aware of what names a run."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: `Field(json_schema_extra=NOT_IDENTITY)`: the field never changes a run's identity (paths, devices).
NOT_IDENTITY: dict[str, Any] = {"identity": "never"}
#: For fields added after the first release: they count only once they leave their default.
IDENTITY_IF_CHANGED: dict[str, Any] = {"identity": "if_changed"}


class Knobs(BaseModel):
    """A frozen configuration section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

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


def _plain(value: Any) -> Any:
    if isinstance(value, Knobs):
        return value.identity()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


class QuantizerKnobs(Knobs):
    """The default quantizer: how float weights are rounded, and what the tracker and regularizer watch."""

    granularity: Literal["tensor", "channel"] = Field("tensor", description="one step a tensor or a channel")
    range: Literal["max", "mse"] = Field("max", description="max|w|, or clipped where squared error is least")
