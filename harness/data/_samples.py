"""What a run needs of its data, whatever the task; and data sets that are tensors of inputs and of targets."""

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class TaskData(Protocol):
    """Three splits on one device. `Dataset` (classes of images) is one; a data-set file's `load` may give another.

    input_shape: of one input in training. outputs: the second argument of a model's `build` beside the shape: classes,
    values, or what the task's data says. digest: names the data that were read; depends neither on seed nor on paths.
    """

    @property
    def train(self) -> Sized: ...
    @property
    def val(self) -> Sized: ...
    @property
    def test(self) -> Sized: ...
    @property
    def digest(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> int: ...

    def train_batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training samples at `indices`, int64 (B,); augmented only with a generator."""

    def batches(self, split: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples of a split in order, for evaluation."""

    def first(self, split: Any, count: int) -> Any:
        """The first samples of a split, as a split."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Inputs and targets with the same first dimension."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Pairs":
        return Pairs(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class TensorData:
    """A data set whose inputs are ready for the network; nothing is augmented."""

    train: Pairs
    val: Pairs
    test: Pairs
    outputs: int
    digest: str

    @property
    def device(self) -> torch.device:
        return self.train.inputs.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    def train_batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """See `TaskData`."""
        return self.train.inputs[indices], self.train.targets[indices]

    def batches(self, split: Pairs, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `TaskData`."""
        return zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True)

    def first(self, split: Pairs, count: int) -> Pairs:
        """See `TaskData`."""
        return Pairs(split.inputs[:count], split.targets[:count])
