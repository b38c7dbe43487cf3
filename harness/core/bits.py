"""Bit-widths: what is legal and how it is written. Standard library only."""

from typing import Literal

FLOAT = "float"

MIN_BITS, MAX_BITS = 2, 8

Bits = int | Literal["float"]
#: What becomes of a learned step at another bit-width.
ScalePolicy = Literal["keep_step", "keep_range", "recalibrate"]
