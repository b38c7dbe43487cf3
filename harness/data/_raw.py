"""Decoded images: splits of them, and all that a data-set file reads."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.core.errors import BrokenError
from harness.core.outside import shown

#: Bytes of images that are gone through together.
PART = 2**20


@dataclass(frozen=True, eq=False)
class Split:
    """Decoded images, uint8 (N, C, H, W), and the class numbers of the split's samples, int64 (M,).

    rows: int64 (M,), on the CPU: the images of the samples, which stay where they are, in memory of the host or mapped
    from a file. None: the images are the samples', in this order, and move with the split.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The samples at `indices`, int64 (K,), in that order."""
        if self.rows is None:
            return Split(self.images[indices], self.labels[indices])
        return Split(self.images, self.labels[indices], self.rows[indices.cpu()])

    def to(self, device: torch.device | str) -> "Split":
        images = self.images.to(device) if self.rows is None else self.images
        return Split(images, self.labels.to(device), self.rows)

    def in_place(self) -> "Split":
        """The same samples of images that stay where they are."""
        return Split(self.images, self.labels, torch.arange(len(self.labels)))

    def onto(self, device: torch.device | str) -> "Split":
        """Labels and images in memory of a device, images copied there in parts."""
        if self.rows is None:
            return self.to(device)
        images = torch.empty(len(self), *self.images.shape[1:], dtype=torch.uint8, device=device)
        for part in self.parts():
            images[part] = self.pixels(part).to(device)
        return Split(images, self.labels.to(device))

    def parts(self) -> list[slice]:
        """All samples, in order, in parts of at most PART bytes, or one image."""
        some = max(1, PART // self.images[0].numel())
        return [slice(at, min(at + some, len(self))) for at in range(0, len(self), some)]

    def pixels(self, indices: Tensor | slice, pinned: bool = False) -> Tensor:
        """uint8 (K, C, H, W), where the images are. indices: int64 (K,), or a slice. pinned: into pinned memory."""
        if self.rows is not None:
            indices = self.rows[indices if isinstance(indices, slice) else indices.cpu()]
        if isinstance(indices, slice):
            return self.images[indices]
        if not pinned:
            return self.images.index_select(0, indices)  # whole rows: seven times as fast as [indices] on CPUs
        out = self.images.new_empty(len(indices), *self.images.shape[1:], pin_memory=True)
        return torch.index_select(self.images, 0, indices, out=out)


@dataclass(frozen=True, eq=False)
class Raw:
    """What a data-set file reads, on the CPU: all its images before any split is drawn.

    val: None where it is to be carved from train. max_value: the pixel value that means 1.0. kept_digest: the digest
    of images that are mapped from a file, which has it; None where they are in memory.
    """

    train: Split
    test: Split
    val: Split | None
    class_names: tuple[str, ...]
    max_value: int
    kept_digest: str | None = None

    @property
    def mapped(self) -> bool:
        """Whether images are mapped from a file."""
        return self.kept_digest is not None

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return sum(split.images.numel() for split in (self.train, self.val, self.test) if split is not None)

    def check_labels(self, name: str) -> None:
        """One pass over the labels. Raises BrokenError naming the data set, for labels that are outside the classes."""
        classes = len(self.class_names)
        for split, there in (("train", self.train), ("val", self.val), ("test", self.test)):
            if there is None or not len(there):
                continue
            low, high = (value.item() for value in there.labels.aminmax())
            if not 0 <= low <= high < classes:
                found = low if low == high else f"{low} to {high}"
                where = f"data set {shown(name)!r}: {split}"
                raise BrokenError(f"{where}: labels must be 0 to {classes - 1}; found {found}")

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name every decoded pixel and label."""
        if self.kept_digest is not None:
            return self.kept_digest
        digest = hashlib.sha256(f"max_value {self.max_value}".encode())
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                digest.update(f"/{name}{tuple(split.images.shape)}".encode())
                digest.update(split.images.contiguous().numpy().data)
                digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]
