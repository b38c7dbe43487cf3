"""What a task measures: a figure's name, unit, direction and legal range. Free of torch; a task states its own."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: Metric names have these places for other values.
_TAKEN = ("loss", "monitor")


@dataclass(frozen=True)
class Metric:
    """A figure of a network on a split.

    key: in metric names (`val/<key>_w3`) and rows, lower-case letters and digits. unit, scale, digits: how a value is
    shown, `scale * value` with so many decimals. low, high: the legal range, inclusive. margin: the difference that
    claims call close. tolerance: the difference between devices that is still the same result. beside: further figures,
    which no epoch and no trial is chosen by unless an objective names them.
    """

    name: str
    key: str
    higher_is_better: bool
    margin: float
    tolerance: float
    unit: str = ""
    scale: float = 1.0
    digits: int = 4
    low: float = float("-inf")
    high: float = float("inf")
    beside: tuple["Metric", ...] = ()

    def __post_init__(self) -> None:
        keys = [self.key, *(each.key for each in self.beside)]
        for key in keys:
            if not re.fullmatch("[a-z][a-z0-9]*", key) or key in _TAKEN or keys.count(key) > 1:
                raise ValueError(f"metric {self.name!r}: {key!r} is no key: lower-case letters and digits, each once")

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """In Optuna's words."""
        return "maximize" if self.higher_is_better else "minimize"

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`, not as good."""
        return one > other if self.higher_is_better else one < other

    def worst(self, values: Iterable[float]) -> float:
        """The worst of some values, at least one."""
        return min(values) if self.higher_is_better else max(values)

    def shown(self, value: float, width: int = 0) -> str:
        """`93.21 %`: a value with its unit; the number is padded to `width`."""
        return f"{self.scale * value:{width}.{self.digits}f} {self.unit}".rstrip()

    def check(self, value: float) -> float:
        """The value itself. Raises ValueError outside of the legal range, and for NaN."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{self.name} is {value} (legal: {self.low:g} to {self.high:g})")
        return value
