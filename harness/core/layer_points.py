"""Deployment points by layer: a named mapping of layer names and globs to points. Standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import total_ordering
from hashlib import sha256
from typing import Any

from harness.core.bits import BitWidths, PlainPoint
from harness.core.errors import UserError, nearest

#: Characters of a name, at most; a derived one that would be longer ends with digits of a hash.
MOST_OF_NAME, _CUT_AT = 60, 40
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MOST_OF_NAME}}}")
#: What a point is written as, or might be meant as; and what ends other names of metrics.
_TAKEN = re.compile(r"\d+|(?:(?:w|a|kv)\d+)+|float|trained|worst|spread|.*_after_.*", re.IGNORECASE)


@total_ordering
@dataclass(frozen=True)
class LayerPoints:
    """Points by layer name or glob, and a name, which rows, metrics and tables have for it.

    A layer's name counts before globs, an earlier glob before a later one, and `*` last, wherever it is written. Layers
    that none matches have the bits that they were trained for. In order it comes after all other points but float.
    """

    name: str
    layers: tuple[tuple[str, BitWidths], ...]

    @classmethod
    def of(cls, value: object) -> "LayerPoints":
        """From what a user wrote: `{name: head8, layers: {"*": w4, head: w8}}`, or the inner mapping alone.

        Without a name it gets a readable one, here `w4-head_w8`. Raises UserError.
        """
        if isinstance(value, LayerPoints):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"{value!r}: no mapping of layers to points, such as {{'*': w4, head: w8}}")
        named = any(isinstance(each, Mapping) for each in value.values())
        if named and (unknown := [key for key in value if key not in ("name", "layers")]):
            raise UserError(f"{unknown[0]}: unknown key{nearest(unknown[0], ('name', 'layers'))} (legal: layers, name)")
        written = value["layers"] if named else value
        if not isinstance(written, Mapping) or not written:
            raise UserError(f"layers: {written!r}: name at least one layer or glob and its point, such as {{'*': w4}}")
        layers = tuple((_glob(key), _point(key, each)) for key, each in written.items())
        if all(point.is_float for _, point in layers):
            raise UserError("every layer would be float, which is evaluated anyway; name a point to round to")
        return cls(_checked_name(value["name"]) if named and "name" in value else _derived(layers), layers)

    @property
    def mapping(self) -> dict[str, BitWidths]:
        """Layer name or glob -> point."""
        return dict(self.layers)

    @property
    def parts(self) -> tuple[BitWidths, ...]:
        """The points of its layers."""
        return tuple(point for _, point in self.layers)

    @property
    def plain(self) -> dict[str, Any]:
        """As in YAML and JSON."""
        return {"name": self.name, "layers": {glob: point.plain for glob, point in self.layers}}

    @property
    def in_row(self) -> str:
        """As in the field `bits` of a row."""
        return self.name

    @property
    def key(self) -> str:
        """As in the names of metrics, which W&B would split at dots."""
        return self.name.replace(".", "_")

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized: never."""
        return False

    @property
    def weights_only(self) -> bool:
        """Whether activations, keys and values stay float in all its layers."""
        return all(point.weights_only for point in self.parts)

    @property
    def has_activations(self) -> bool:
        """Whether the activations of any of its layers are quantized."""
        return any(point.activations is not None for point in self.parts)

    @property
    def has_kv(self) -> bool:
        """Whether the keys and values of any of its layers are quantized."""
        return any(point.has_kv for point in self.parts)

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: object) -> bool:
        if isinstance(other, BitWidths):
            return other.is_float
        if isinstance(other, LayerPoints):
            return (self.name, self.layers) < (other.name, other.layers)
        return NotImplemented


#: A point of any kind, and what one is made from.
AnyPoint = BitWidths | LayerPoints
Written = AnyPoint | PlainPoint | Mapping[str, Any]


def point_of(value: object) -> AnyPoint:
    """A point of either kind, from what a user wrote or from one in plain form. Raises UserError."""
    return LayerPoints.of(value) if isinstance(value, Mapping | LayerPoints) else BitWidths.of(value)


def in_words(point: object) -> str:
    """`at 4 bits`, `at w4a8`, `at head8`, `in float`."""
    given = point_of(point)
    if given.is_float:
        return "in float"
    return f"at {given} bits" if isinstance(given.plain, int) else f"at {given}"


def _glob(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise UserError(f"layers: {key!r} is no name or glob of layers")
    return key


def _point(key: object, value: object) -> BitWidths:
    try:
        return BitWidths.of(value)
    except UserError as error:
        raise UserError(f"layers: {key}: {error}") from None


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"name: {name!r} is no name of a point (legal: up to {MOST_OF_NAME} letters, digits, and _ - .)"
        )
    if _TAKEN.fullmatch(name):
        raise UserError(f"name: {name!r} means something else already; choose another, such as mixed-{name}")
    return name


def _derived(layers: tuple[tuple[str, BitWidths], ...]) -> str:
    """`w4-head_w8-layer1_float`."""
    named = [(re.sub(r"[^A-Za-z0-9]+", "_", glob).strip("_"), point.key) for glob, point in layers]
    parts = [f"{where}_{key}" if where else key for where, key in named]
    name = "-".join(parts) if len(parts) > 1 or named[0][0] else f"all_{parts[0]}"
    if len(name) <= MOST_OF_NAME:
        return name
    written = " ".join(f"{glob}={point}" for glob, point in layers)
    return f"{name[:_CUT_AT]}-{sha256(written.encode()).hexdigest()[:6]}"
