"""Pairs of small and large images for super-resolution, on the training device as uint8.

Training crops are flipped, rotated (EDSR) and, where that is asked for, have their colour channels in a random order.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.core.seeding import sub_seed


@dataclass(frozen=True, eq=False)
class Images:
    """Images of different sizes: low, uint8 (C, h, w) each, and high, (C, s h, s w)."""

    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.high)

    def to(self, device: torch.device | str) -> "Images":
        return Images(tuple(each.to(device) for each in self.low), tuple(each.to(device) for each in self.high))

    def some(self, indices: Sequence[int]) -> "Images":
        """Those at these places."""
        return Images(tuple(self.low[i] for i in indices), tuple(self.high[i] for i in indices))


@dataclass(frozen=True, eq=False)
class Crops:
    """What an epoch trains on: `count` random crops of images."""

    images: Images
    count: int

    def __len__(self) -> int:
        return self.count

    @cached_property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """All low and all high images one after another, each (C, pixels): crops of many images in one look-up."""
        return tuple(torch.cat([each.flatten(1) for each in of], 1) for of in (self.images.low, self.images.high))  # type: ignore[return-value]

    @cached_property
    def sizes(self) -> Tensor:
        """Height and width of each low image, int64 (images, 2)."""
        low = self.images.low
        return torch.tensor([each.shape[1:] for each in low], device=low[0].device)


@dataclass(frozen=True, eq=False)
class EnlargingData:
    """Training: crops of `patch` pixels of the low images, changed at random. Evaluation: whole images.

    outputs: the factor of enlargement.
    """

    train: Crops
    val: Images
    test: Images
    outputs: int
    patch: int
    augment: bool
    shuffle_colours: bool
    digest: str

    @property
    def device(self) -> torch.device:
        return self.train.images.high[0].device

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a crop."""
        return len(self.train.images.low[0]), self.patch, self.patch

    def batches(self, split: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One image at a time, whatever the batch size: sizes differ."""
        return ((_unit(low[None]), _unit(high[None])) for low, high in zip(split.low, split.high, strict=True))

    def first(self, split: Images, count: int) -> Images:
        """The first images of a split."""
        return Images(split.low[:count], split.high[:count])

    def train_batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Crops (B, C, patch, patch) and what they are to become, float32 in [0, 1].

        With a generator their places are drawn, and how they are changed; without, each index has a place.
        """
        if generator is None:
            return self.crops(self._places[indices], None)
        drawn = torch.rand(len(indices), generator=generator, device=generator.device, dtype=torch.float64)
        turns = torch.randint(0, 8, (len(indices),), generator=generator, device=generator.device)
        low, high = self.crops(drawn, turns if self.augment else None)
        if not self.shuffle_colours:
            return low, high
        drawn = torch.rand(low.shape[:2], generator=generator, device=generator.device)
        order = drawn.argsort(dim=1)[:, :, None, None]
        return low.take_along_dim(order, dim=1), high.take_along_dim(order, dim=1)

    @cached_property
    def _places(self) -> Tensor:
        generator = torch.Generator().manual_seed(sub_seed(0, "crops"))
        return torch.rand(len(self.train), generator=generator, dtype=torch.float64).to(self.device)

    def crops(self, places: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor]:
        """places: float64 (B,) in [0, 1) among all crops there are. turns: int64 (B,), 0 to 7; None: as they are."""
        sizes, patch = self.train.sizes, self.patch
        rows, columns = (sizes - patch + 1).unbind(1)
        ends = (rows * columns).cumsum(0)
        number = torch.minimum((places * ends[-1]).long(), ends[-1] - 1)
        image = torch.searchsorted(ends, number, right=True)
        number = number - (ends - rows * columns)[image]
        top, left = number // columns[image], number % columns[image]
        before = (sizes.prod(1).cumsum(0) - sizes.prod(1))[image]
        width, scale = sizes[image, 1], self.outputs
        low, high = self.train.pixels
        return (
            _cut(low, before, top, left, width, patch, turns),
            _cut(high, before * scale**2, top * scale, left * scale, width * scale, patch * scale, turns),
        )


def _cut(
    pixels: Tensor, before: Tensor, top: Tensor, left: Tensor, width: Tensor, side: int, turns: Tensor | None
) -> Tensor:
    """Squares, float32 (B, C, side, side), at places (B,) in images that lie one after another in pixels (C, all)."""
    row, column = torch.meshgrid(*[torch.arange(side, device=pixels.device)] * 2, indexing="ij")
    row, column = row[None], column[None]
    if turns is not None:
        transposed, down, right = ((turns >> bit & 1).bool()[:, None, None] for bit in range(3))
        row, column = torch.where(transposed, column, row), torch.where(transposed, row, column)
        row, column = torch.where(down, side - 1 - row, row), torch.where(right, side - 1 - column, column)
    at = before[:, None, None] + (top[:, None, None] + row) * width[:, None, None] + left[:, None, None] + column
    return _unit(pixels[:, at].transpose(0, 1).contiguous())


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(255)


def smaller(high: np.ndarray, scale: int) -> tuple[Tensor, Tensor]:
    """An image, uint8 (H, W, C), made smaller by bicubic interpolation, and itself, cut to a multiple of `scale`."""
    height, width = (side // scale for side in high.shape[:2])
    high = np.ascontiguousarray(high[: height * scale, : width * scale])
    picture = Image.fromarray(high[..., 0] if high.shape[2] == 1 else high)
    low = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)
    return _tensor(low), _tensor(high)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def gathered(pairs: Sequence[tuple[Tensor, Tensor]]) -> Images:
    """Pairs of low and high as a split."""
    return Images(tuple(low for low, _ in pairs), tuple(high for _, high in pairs))


def digest_of(splits: Sequence[Images]) -> str:
    """16 hexadecimal digits that name every pixel."""
    digest = hashlib.sha256()
    for split in splits:
        for image in (*split.low, *split.high):
            digest.update(f"/{tuple(image.shape)}".encode())
            digest.update(image.contiguous().numpy().data)
    return digest.hexdigest()[:16]
