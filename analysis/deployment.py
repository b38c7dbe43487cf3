"""Deployment points as the analysis has them: 4, "w4a8", "float" as in configurations; points by layer by name."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any, Literal

import pandas as pd

from harness.core.bits import FLOAT, BitWidths, PlainPoint
from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints
from harness.records import schema

#: What a point rounds: the weights of all layers to as many bits, or nothing; activations as well; by layer.
Kind = Literal["weights", "activations", "by layer"]
#: What a figure says of them.
EXPLAINED: dict[Kind, str] = {
    "weights": "a number: weights alone",
    "activations": "w: weights, a: activations, hollow marks",
    "by layer": "a name: by layer, not joined",
}
#: Characters of a name that a tick has room for.
_SHORT = 14


def of_row(row: Mapping[str, Any]) -> PlainPoint:
    """The point of a record's row. A row without activations, keys and values has it as it is."""
    if row.keys().isdisjoint(schema.ROW_WHERE_QUANTIZED):
        return row["bits"]
    return str(schema.point(row))


def _point(point: PlainPoint) -> AnyPoint:
    try:
        return BitWidths.of(point)
    except UserError:
        return LayerPoints(str(point), ())  # by its name alone


def is_by_layer(point: PlainPoint) -> bool:
    """Whether it is the name of points by layer."""
    return isinstance(_point(point), LayerPoints)


def in_order(found: Iterable[PlainPoint]) -> list[PlainPoint]:
    """Each once: by weights, then activations, then keys and values, float last in each. By layer: before float."""
    return sorted(set(found), key=_point)


def title(point: PlainPoint) -> str:
    """`4 bits`, `w4a8`, `float`: for the head of a column or panel."""
    return f"{point} bits" if isinstance(point, int) else point


def short(text: str) -> str:
    """A point as text, for a tick: long names of points by layer are cut."""
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def key(point: PlainPoint) -> str:
    """`w4`, `w4a8`, `float`, `layers.head8`: for the name of a column of a csv file."""
    return f"layers.{point}" if is_by_layer(point) else BitWidths.of(point).key


def weights(point: PlainPoint) -> int | None:
    """The bits of the weights, which trackers watch; None for float."""
    return BitWidths.of(point).weights


def weights_only(point: PlainPoint) -> bool:
    """Whether all layers have weights of as many bits, and activations, keys and values stay float."""
    return not is_by_layer(point) and BitWidths.of(point).weights_only


def kind(text: str) -> Kind:
    """Of a point as text: `4`, `float`; `w4a8`; `head8`."""
    if text == FLOAT or text.isdigit():
        return "weights"
    return "by layer" if is_by_layer(text) else "activations"


def others(found: Iterable[PlainPoint], target: PlainPoint | None) -> list[PlainPoint]:
    """The quantized points but the target that round the same parts as the target does: weights alone, or more.

    A mean over 3 and w4a4 bits would say little of either. Without a target: all quantized points, but none by layer.
    """
    quantized = [point for point in in_order(found) if not is_by_layer(point) and not BitWidths.of(point).is_float]
    return [point for point in quantized if target is None or (point != target and alike(point, target))]


def alike(one: PlainPoint, other: PlainPoint) -> bool:
    """Whether both round the same parts: weights alone, or activations as well."""
    first, second = ([bits is None for bits in astuple(BitWidths.of(point))] for point in (one, other))
    return first == second


def tidy(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A frame's column of targets: whole numbers, empty for none; plain points where one is more than its weights."""
    return column if any(isinstance(value, str) for value in column) else column.astype("Int64")
