"""Decoding image files into one uint8 tensor, with a pool of threads."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.core.errors import UserError
from harness.data._cache import cached
from harness.data._source import LabelledFiles, Source
from harness.data.base import Raw, Split

#: Files a task decodes; one task a file would spend a third of its time on the pool.
CHUNK = 256
#: Pillow's names of images with 8 bits or fewer per channel. Converting others to RGB would cut values off.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
#: Those of them without colours.
GREY = ("1", "L", "LA")
#: How the names of modes with more begin: I, I;16, F.
DEEP = ("I", "F")


def read_labelled(name: str, files: LabelledFiles, resize: int | None, further: Sequence[str] = ()) -> Raw:
    """All splits, decoded once and then from the cache; 255 means 1.0.

    name: the data set. further: files that decide the labels. Raises UserError like `decode`.
    """
    pairs = [pair for split in files.splits.values() for pair in split]
    names = [image for image, _ in pairs]

    def make() -> Raw:
        images, labels = decode(files.source, names, resize), torch.tensor([label for _, label in pairs])
        sizes = [len(split) for split in files.splits.values()]
        parts = zip(files.splits, images.split(sizes), labels.split(sizes), strict=True)
        splits = {split: Split(pixels, numbers) for split, pixels, numbers in parts}
        return Raw(splits["train"], splits["test"], splits.get("val"), files.class_names, max_value=255)

    return cached(name, files.source.fingerprint([*further, *names]), resize, make)


def decode(source: Source, names: Sequence[str], resize: int | None) -> Tensor:
    """The images as RGB, uint8 (N, 3, H, W), in the order of `names`. Transparency is dropped.

    resize: the side of the squares that all images are made (bilinear), or None to keep their size.
    Raises UserError, naming the file: damaged, more than 8 bits per channel, another mode that is not read, or another
    size than the first.
    """
    first = decode_one(source, names[0], resize)
    images = np.empty((len(names), 3, *first.shape[:2]), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(names))):
            image = decode_one(source, names[index], resize)
            if image.shape != first.shape:
                raise _unequal(source, names[0], first, names[index], image)
            images[index] = image.transpose(2, 0, 1)

    with pool() as workers:
        for _ in workers.map(decode_chunk, range(0, len(names), CHUNK)):
            pass  # results come in order, so the first damaged file is the one named
    return torch.from_numpy(images)


def first_shape(source: Source, folders: Sequence[str], resize: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the first image in these folders. Raises UserError like `decode`, and where there is none."""
    image = next((name for folder in folders[:1] for name in source.names(folder)), None)
    if image is None:
        raise UserError(f"data.root: {source.show(folders[0] if folders else '.')} holds no images")
    height, width, channels = decode_one(source, image, resize).shape
    return channels, height, width


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (N, C, H, W), C 1 or 3 -> uint8 (N, C, side, side), bilinear like `decode`."""
    pixels = images.permute(0, 2, 3, 1).squeeze(3).numpy()
    result = np.stack([np.asarray(_square(Image.fromarray(image), side)) for image in pixels])
    return torch.from_numpy(result.reshape(len(images), side, side, -1)).permute(0, 3, 1, 2).contiguous()


def _square(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def decode_one(source: Source, name: str, resize: int | None = None, grey: bool = False) -> np.ndarray:
    """uint8 (H, W, 3). grey: (H, W, 1) of an image without colours, which is RGB otherwise."""
    try:
        with Image.open(io.BytesIO(source.read(name))) as image:
            mode = image.mode
            if grey and mode in GREY:
                return np.asarray(image.convert("L"))[..., None]
            if mode in EIGHT_BIT:
                pixels = image.convert("RGB")
                return np.asarray(_square(pixels, resize) if resize else pixels)
    except Exception as error:  # Pillow's readers and zipfile raise many kinds for a damaged file
        raise UserError(f"data.root: cannot decode {source.show(name)}: {error}; remove it") from error
    if mode.startswith(DEEP):
        raise UserError(f"data.root: {source.show(name)} has more than 8 bits per channel ({mode}); convert it")
    raise UserError(
        f"data.root: {source.show(name)} is of mode {mode}, which is not read (legal: {', '.join(EIGHT_BIT)}); "
        "convert it to RGB"
    )


def _unequal(source: Source, one: str, first: np.ndarray, other: str, image: np.ndarray) -> UserError:
    sizes = [f"{shape[1]}x{shape[0]}" for shape in (first.shape, image.shape)]
    return UserError(
        f"data.resize must be set, as image sizes differ: {source.show(one)} is {sizes[0]}, "
        f"{source.show(other)} is {sizes[1]} (width x height); data.resize: {min(first.shape[:2])} "
        "would make all squares of that side"
    )


def pool() -> ThreadPoolExecutor:
    """Threads that decode, one a core: Pillow runs without the interpreter's lock."""
    return ThreadPoolExecutor(_cores())


def _cores() -> int:
    """Cores this process may use: a Slurm job sees fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
