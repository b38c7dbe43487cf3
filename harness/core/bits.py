"""Bit-widths and deployment points: what is legal and how it is written. Standard library only."""

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal

from harness.core.errors import UserError, nearest

FLOAT = "float"

MIN_BITS, MAX_BITS = 2, 8

Bits = int | Literal["float"]
#: A deployment point in YAML, JSON and names: 4 (weights only), "w4a8", "float".
PlainPoint = int | str
#: What becomes of a learned step at another bit-width.
ScalePolicy = Literal["keep_step", "keep_range", "recalibrate"]

_FORM = re.compile(r"w(?P<weights>\d)(?:a(?P<activations>\d))?(?:kv(?P<kv>\d))?", re.IGNORECASE)
_EXAMPLES = ("w4", "w8", "w4a8", "w4a4", "w8a8", "w4kv4", "w4a8kv4", FLOAT)
LEGAL_POINTS = (
    f"legal: {MIN_BITS} to {MAX_BITS} or w{MIN_BITS} to w{MAX_BITS} for weights alone, w4a8 with activations, "
    f"w4kv4 or w4a8kv4 with keys and values, {FLOAT}"
)


@total_ordering
@dataclass(frozen=True)
class BitWidths:
    """A deployment point: the bit-widths of weights, activations, and keys and values, 2 to 8 each; None is float.

    Written `4` or `w4` (weights only), `w4a8`, `w4kv4`, `w4a8kv4`, `float`. Without weights there is no other part.
    Points are ordered by weights, then by activations, then by keys and values, float last in each.
    """

    weights: int | None = None
    activations: int | None = None
    kv: int | None = None

    def __post_init__(self) -> None:
        for bits in self._each():
            if bits is not None and (type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS):
                raise UserError(f"{bits!r}: no bit-width (legal: whole numbers from {MIN_BITS} to {MAX_BITS})")
        if self.weights is None and (self.activations, self.kv) != (None, None):
            raise UserError("a point without bits for weights has none for activations, keys and values either")

    @classmethod
    def of(cls, value: object) -> "BitWidths":
        """A point from what a user wrote: 4, "w4", "W4A8", "float", or a point itself. Raises UserError."""
        if isinstance(value, BitWidths):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and MIN_BITS <= value <= MAX_BITS:
            return cls(value)
        if isinstance(value, str):
            text = value.strip()
            if text.lower() == FLOAT:
                return cls()
            found = _FORM.fullmatch(text)
            parts = {name: int(bits) for name, bits in found.groupdict().items() if bits} if found else {}
            if parts and all(MIN_BITS <= bits <= MAX_BITS for bits in parts.values()):
                return cls(**parts)
        hint = nearest(value.lower(), _EXAMPLES) if isinstance(value, str) else ""
        raise UserError(f"{value!r}: no bit-width{hint} ({LEGAL_POINTS})")

    @property
    def plain(self) -> PlainPoint:
        """As in YAML, JSON and rows: an int where only weights have bits."""
        return self.weights if self.weights is not None and self.weights_only else str(self)

    @property
    def key(self) -> str:
        """As in the names of metrics: `w4`, `w4a8`, `float`."""
        return f"w{self.weights}" if self.weights is not None and self.weights_only else str(self)

    @property
    def in_row(self) -> Bits:
        """As in the field `bits` of a row, which is of the weights."""
        return "float" if self.weights is None else self.weights

    @property
    def parts(self) -> "tuple[BitWidths, ...]":
        """The points of the layers: one for all."""
        return (self,)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights is None

    @property
    def weights_only(self) -> bool:
        """Whether activations, keys and values stay float."""
        return self.activations is None and self.kv is None

    @property
    def has_activations(self) -> bool:
        """Whether activations are quantized."""
        return self.activations is not None

    @property
    def has_kv(self) -> bool:
        """Whether keys and values are quantized."""
        return self.kv is not None

    def __str__(self) -> str:
        """The shortest form: `4`, `w4a8`, `float`."""
        if self.weights is None:
            return FLOAT
        if self.weights_only:
            return str(self.weights)
        parts = (("w", self.weights), ("a", self.activations), ("kv", self.kv))
        return "".join(f"{letter}{bits}" for letter, bits in parts if bits is not None)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, BitWidths):
            return NotImplemented
        return self._place() < other._place()

    def _place(self) -> tuple[int, ...]:
        return tuple(MAX_BITS + 1 if bits is None else bits for bits in self._each())

    def _each(self) -> tuple[int | None, ...]:
        return self.weights, self.activations, self.kv  # astuple takes ten times as long, and rows are many
