"""What a run trains on: splits, and the batches that are drawn from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from harness.core.seeding import sub_seed
from harness.data._ahead import Ahead, ahead
from harness.data._augment import crop_and_flip, draw
from harness.data._config import Augment
from harness.data._raw import Raw, Split
from harness.data._resized_crop import draw_boxes, resized_crops
from harness.kernels import cpu, dispatch

__all__ = ["Augment", "Dataset", "Raw", "Split", "order"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits, as uint8; batches are normalized, and augmented, on the device, as they are drawn.

    mean, std: float32 (C,), of the train split in [0, 1] units; zeros and ones where nothing is standardized.
    digest: names the images and labels that were decoded; it depends neither on the seed nor on paths. crop: side of
    the square in the middle of images that evaluation sees, and training that does not crop; None: all of them.
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
    crop: int | None = None

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
        return channels, self.crop or height, self.crop or width

    @property
    def device(self) -> torch.device:
        """Of batches, labels and statistics; images may be elsewhere (`Split.rows`)."""
        return self.mean.device

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
        if self._takes_rows(split) and not isinstance(indices, slice):
            return _unambiguous(cpu.image_batch(split.images, indices, self._table, self._formulas)), labels
        return self.normalized(self._middle(self._pixels(split, indices))), labels

    def _takes_rows(self, split: Split) -> bool:
        """Whether the pass in C makes batches of whole images from where they are."""
        return split.rows is None and self.crop is None and dispatch.serves_images(split.images)

    def _middle(self, images: Tensor) -> Tensor:
        """What evaluation sees of images (B, C, H, W)."""
        if self.crop is None:
            return images
        top, left = (round((side - self.crop) / 2) for side in images.shape[2:])
        return images[:, :, top : top + self.crop, left : left + self.crop].contiguous()

    @cached_property
    def ahead(self) -> Ahead | None:
        """Of training images that are not on the device; None where all are."""
        return None if self.train.rows is None else Ahead(partial(self._gathered, self.train))

    def _gathered(self, split: Split, indices: Tensor | slice) -> Tensor:
        """The images of a batch, in memory that a GPU reads while the host goes on."""
        return split.pixels(indices, pinned=self.device.type == "cuda" and split.rows is not None)

    def _pixels(self, split: Split, indices: Tensor | slice) -> Tensor:
        """The images of a batch, uint8 (B, C, H, W), on the device."""
        if split is self.train and self.ahead is not None and isinstance(indices, Tensor):
            return self.ahead.take(indices).to(self.device, non_blocking=True)
        return self._gathered(split, indices).to(self.device, non_blocking=True)

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of a split in order, as `batch` gives it."""
        parts = [slice(at, at + batch_size) for at in range(0, len(split), batch_size)]
        if split.rows is None:
            return (self.batch(split, part) for part in parts)
        pixels = ahead(partial(self._gathered, split), parts, depth=1)  # these batches are large
        return ((self._finished(each), split.labels[part]) for each, part in zip(pixels, parts, strict=True))

    def _finished(self, pixels: Tensor) -> Tensor:
        """Inputs from images that were gathered."""
        return self.normalized(self._middle(pixels.to(self.device, non_blocking=True)))

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
        images = self._augmented(indices, generator)  # first: it names a row that is not there
        return images, self.train.labels.index_select(0, indices)  # a third of the time of `labels[indices]`

    def _augmented(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        padding = self.augment.crop_padding
        offsets, mirrored = draw(len(indices), self.augment, generator)
        if how := self.augment.random_resized_crop:
            images, rows = self._pixels(self.train, indices), None
            boxes = draw_boxes(len(images), images.shape[2:], how, generator)
            crops = resized_crops(images, boxes, mirrored, *self.input_shape[1:])
            return _unambiguous(self._by_plain_operations(crops))
        if self._takes_rows(self.train):
            images, rows = self.train.images, indices
        else:
            images, rows = self._middle(self._pixels(self.train, indices)), None
        if dispatch.serves_images(images):
            values = self._table, self._formulas
            return _unambiguous(cpu.image_batch(images, rows, *values, padding, offsets, mirrored))
        return self.normalized(crop_and_flip(images, padding, offsets, mirrored))


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
