"""Bit-widths: what is legal and how it is written."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

if TYPE_CHECKING:
    pass


def _bits(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"no bit-width (legal: whole numbers from {MIN_BITS} to {MAX_BITS})")
    return value


WeightBits = Annotated[int, BeforeValidator(_bits)]

FLOAT = "float"

MIN_BITS, MAX_BITS = 2, 8

Bits = int | Literal["float"]
ScalePolicy = Literal["keep_step", "keep_range", "recalibrate"]
