"""Search dimensions of a sweep, and the samplers whose k-th draw depends on (seed, k) alone."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from harness.core.config_base import StrictConfig
from harness.core.errors import UserError
from harness.core.seeding import sub_seed

Scalar = bool | int | float | str | None
#: Samplers whose trial k is known before the sweep starts, whatever the workers do.
STATIC_SAMPLERS = ("random", "grid", "qmc")


class Choices(StrictConfig):
    """A categorical dimension: one of the listed values."""

    choices: tuple[Scalar, ...] = Field(min_length=1, description="the values; a plain list means the same")

    def at(self, position: float) -> Scalar:
        """The value at a position in [0, 1)."""
        return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]

    def points(self) -> Sequence[Scalar]:
        """The values a grid visits."""
        return self.choices


class Range(StrictConfig):
    """A numeric dimension, both ends included: uniform, log-uniform, integer, or in steps."""

    low: float = Field(description="smallest value, included")
    high: float = Field(description="largest value, included")
    log: bool = Field(False, description="draw uniformly in the logarithm; low must be above 0")
    kind: Literal["float", "int"] = Field("float", description="int: whole numbers only")
    step: float | None = Field(
        None, gt=0, description="spacing of the values, from low; whole for int; null: any value"
    )
    grid_points: int = Field(5, ge=2, le=1000, description="how many values the grid sampler visits")

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"empty search range: low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range cannot start at {self.low:g}; give low above 0")
        if self.log and self.step is not None:
            raise ValueError("a log range has no step; leave one of the two out")
        if self.kind == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"kind int wants whole ends, not {self.low:g} and {self.high:g}")
        if self.kind == "int" and self.step is not None and not self.step.is_integer():
            raise ValueError(f"kind int wants a whole step, not {self.step:g}; or kind: float")
        return self

    @property
    def grid(self) -> tuple[float, int] | None:
        """Spacing and number of the values, from low, for every sampler; None where they are no even grid."""
        spacing = self.step or (1.0 if self.kind == "int" and not self.log else None)
        if spacing is None:
            return None
        low, high, step = (Decimal(repr(value)) for value in (self.low, self.high, spacing))  # as they were written
        return spacing, int((high - low) / step) + 1

    def at(self, position: float) -> float | int:
        """The value at a position in [0, 1]."""
        if self.grid is not None:
            spacing, count = self.grid
            value = self.low + spacing * min(int(position * count), count - 1)
        elif self.log:
            value = math.exp(math.log(self.low) + position * (math.log(self.high) - math.log(self.low)))
            value = min(max(value, self.low), self.high)
        else:
            value = self.low + position * (self.high - self.low)
        return round(value) if self.kind == "int" else value

    def points(self) -> Sequence[float | int]:
        """The values a grid visits: `grid_points` of them, ends included, without repeats."""
        return sorted({self.at(index / (self.grid_points - 1)) for index in range(self.grid_points)})


def _choose(value: Any) -> Any:
    if isinstance(value, StrictConfig):
        return value
    if isinstance(value, list | tuple):
        return Choices(choices=tuple(value))
    if not isinstance(value, Mapping) or not ({"choices", "low", "high"} & set(value)):
        raise ValueError("a search dimension is {low: ..., high: ..., log: true} or a list of choices")
    return Choices.model_validate(value) if "choices" in value else Range.model_validate(value)


Dimension = Annotated[Choices | Range, BeforeValidator(_choose)]
Space = Mapping[str, Choices | Range]


def draw(space: Space, sampler: str, seed: int, index: int) -> dict[str, Scalar]:
    """Trial `index` of a static sampler, by dimension name; a function of its arguments alone.

    grid: the whole grid in an order shuffled by seed, and again from its start when it is used up.
    qmc: scrambled Sobol points. Raises UserError for a sampler that is not static.
    """
    names = sorted(space)
    if not names:
        return {}
    if sampler == "grid":
        grid = list(itertools.product(*(space[name].points() for name in names)))
        random.Random(seed).shuffle(grid)
        return dict(zip(names, grid[index % len(grid)], strict=True))
    if sampler == "random":
        generator = random.Random(sub_seed(seed, "trial", index))
        positions = [generator.random() for _ in names]
    elif sampler == "qmc":
        from scipy.stats import qmc

        sobol = qmc.Sobol(len(names), scramble=True, rng=seed)
        if index:  # scipy overflows on fast_forward(0)
            sobol.fast_forward(index)
        positions = [float(x) for x in sobol.random(1)[0]]
    else:
        raise UserError(f"sampler {sampler!r} depends on earlier trials; static: {', '.join(STATIC_SAMPLERS)}")
    return {name: space[name].at(position) for name, position in zip(names, positions, strict=True)}


def corners(space: Space) -> list[dict[str, Scalar]]:
    """Points that show whether every value of a space is legal: each dimension's extremes and inside."""
    named = {name: list(space[name].points()) for name in sorted(space)}
    length = max((len(values) for values in named.values()), default=1)
    return [{name: values[min(index, len(values) - 1)] for name, values in named.items()} for index in range(length)]
