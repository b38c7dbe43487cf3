"""What a data set is: config, the decoded images, and the tensors on the device that a run trains on."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.core.seeding import sub_seed
from harness.data._augment import crop_and_flip, draw
from harness.data._config import Augment
from harness.kernels import cpu, dispatch


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded images, uint8 (N, C, H, W), and their class numbers, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The samples at `indices`, int64 (M,), in that order."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Raw:
    """What a data-set file reads, on the CPU: all its images before any split is drawn.

    val: None where it is to be carved from train. max_value: the pixel value that means 1.0.
    """

    train: Split
    test: Split
    val: Split | None
    class_names: tuple[str, ...]
    max_value: int

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name every decoded pixel and label."""
        digest = hashlib.sha256(f"max_value {self.max_value}".encode())
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                digest.update(f"/{name}{tuple(split.images.shape)}".encode())
                digest.update(split.images.contiguous().numpy().data)
                digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits, on one device as uint8; batches are normalized, and augmented, as they are drawn.

    mean, std: float32 (C,), of the train split in [0, 1] units; zeros and ones where nothing is standardized.
    digest: names the images and labels that were decoded; it depends neither on the seed nor on paths.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    max_value: int
    mean: Tensor
    std: Tensor
    augment: Augment
    digest: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """The number of classes, by the name that all tasks' data have."""
        return self.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 of the same shape: `(x / max_value - mean) / std`.

        The order of operations is torchvision's (ToTensor, then Normalize), so values agree bit for bit.
        """
        if dispatch.serves_images(images):
            return _unambiguous(cpu.image_batch(images, None, self._table, self._formulas))
        return _unambiguous(self._by_plain_operations(images))

    def _by_plain_operations(self, images: Tensor) -> Tensor:
        values = images.float().div_(self.max_value)
        return values.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])

    @cached_property
    def _table(self) -> Tensor:
        """What each value of a pixel becomes, float32 (C, 256): looking it up is several times as fast on a CPU."""
        values = torch.arange(256, dtype=torch.uint8).repeat(len(self.mean), 1)
        return self._by_plain_operations(values[:, None]).squeeze(1)

    @cached_property
    def _formulas(self) -> Tensor:
        """What the table was made of, float32 (C, 3)."""
        return torch.stack([torch.full_like(self.mean, self.max_value), self.mean, self.std], dim=1).cpu()

    def batch(self, split: Split, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs, float32 (B, C, H, W), and labels, int64 (B,), without augmentation.

        indices: int64 (B,) on the data's device, or a slice.
        """
        labels = split.labels[indices]
        if isinstance(indices, slice):
            return self.normalized(split.images[indices]), labels
        if dispatch.serves_images(split.images):
            return _unambiguous(cpu.image_batch(split.images, indices, self._table, self._formulas)), labels
        return self.normalized(split.images.index_select(0, indices)), labels

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of a split in order, as `batch` gives it."""
        return (self.batch(split, slice(at, at + batch_size)) for at in range(0, len(split), batch_size))

    def first(self, split: Split, count: int) -> Split:
        """The first samples of a split."""
        return split.take(torch.arange(count, device=self.device))

    def train_batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Like `batch` on the train split; augmented if the config says so and a generator is given.

        generator: on the data's device. The draws depend on its state and on the batch size, nothing else;
        where augmentation is off it is left untouched.
        """
        if generator is None or not self.augment.active:
            return self.batch(self.train, indices)
        padding = self.augment.crop_padding
        offsets, mirrored = draw(len(indices), self.augment, generator)
        if dispatch.serves_images(self.train.images):
            values = self._table, self._formulas
            images = cpu.image_batch(self.train.images, indices, *values, padding, offsets, mirrored)
            return _unambiguous(images), self.train.labels.index_select(0, indices)
        images = self.train.images.index_select(0, indices)  # whole rows: seven times as fast as [indices] on CPUs
        return self.normalized(crop_and_flip(images, padding, offsets, mirrored)), self.train.labels[indices]


def _unambiguous(images: Tensor) -> Tensor:
    """The same memory, said to be channels-last where there is one channel, which is in either order at once.

    The networks are channels-last; unless told, a first convolution takes its order from strides that mean nothing.
    """
    if images.shape[1] != 1:
        return images
    height, width = images.shape[2:]
    return images.as_strided(images.shape, (height * width, 1, width, 1)) if images.is_contiguous() else images


def order(count: int, seed: int, epoch: int, device: torch.device | str) -> Tensor:
    """The order of an epoch: a permutation of 0 .. count-1, int64 (count,), on `device`.

    It is drawn on the CPU, so it is the same on each device.
    """
    generator = torch.Generator().manual_seed(sub_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).to(device)
