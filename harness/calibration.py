"""Training inputs for whoever needs to see data outside the loop: initial ranges, PTQ, re-estimation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Batches of training images, without augmentation, the same ones on every reading.

    draw(k) gives batch k: inputs (N, C, H, W) float32, normalised, and labels (N,) int64, on the device.
    """

    draw: "Callable[[int], tuple[Tensor, Tensor]]"

    def batches(self, count: int) -> "Iterator[tuple[Tensor, Tensor]]":
        """The first `count` batches."""
        return (self.draw(index) for index in range(count))
