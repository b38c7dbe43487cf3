"""Decoding one image file. Free of torch, as processes that decode start quickly without it."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from harness.core.errors import UserError
from harness.data._config import Resize, ShorterSide
from harness.data._source import Source

#: Pillow's names of images with 8 bits or fewer per channel. Converting others to RGB would cut values off.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
#: Those of them without colours.
GREY = ("1", "L", "LA")
#: How the names of modes with more begin: I, I;16, F.
DEEP = ("I", "F")


def fitted(image: Image.Image, resize: Resize) -> Image.Image:
    """An image made one size, bilinear."""
    if isinstance(resize, ShorterSide):
        return _middle(image, resize.shorter_side)
    return image if resize is None else square(image, resize)


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle, after the shorter side is made `side`; sizes and places are rounded as torchvision
    does (Resize, CenterCrop)."""
    width, height = (max(side, int(side * each / min(image.size))) for each in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + side, top + side))


def square(image: Image.Image, side: int) -> Image.Image:
    """An image made a square, bilinear; its aspect is not kept."""
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def decode_one(source: Source, name: str, resize: Resize = None, grey: bool = False) -> np.ndarray:
    """uint8 (H, W, 3). grey: (H, W, 1) of an image without colours, which is RGB otherwise."""
    try:
        with Image.open(io.BytesIO(source.read(name))) as image:
            mode = image.mode
            if grey and mode in GREY:
                return np.asarray(image.convert("L"))[..., None]
            if mode in EIGHT_BIT:
                return np.asarray(fitted(image.convert("RGB"), resize))
    except Exception as error:  # Pillow's readers and zipfile raise many kinds for a damaged file
        raise UserError(f"data.root: cannot decode {source.show(name)}: {error}; remove it") from error
    if mode.startswith(DEEP):
        raise UserError(f"data.root: {source.show(name)} has more than 8 bits per channel ({mode}); convert it")
    raise UserError(
        f"data.root: {source.show(name)} is of mode {mode}, which is not read (legal: {', '.join(EIGHT_BIT)}); "
        "convert it to RGB"
    )


def unequal(source: Source, one: str, first: Sequence[int], other: str, image: Sequence[int]) -> UserError:
    """What to say of two images of different shapes, (H, W, 3)."""
    sizes = [f"{shape[1]}x{shape[0]}" for shape in (first, image)]
    return UserError(
        f"data.resize must be set, as image sizes differ: {source.show(one)} is {sizes[0]}, "
        f"{source.show(other)} is {sizes[1]} (width x height); data.resize: {min(first[:2])} "
        "would make all squares of that side"
    )


def cores() -> int:
    """Cores this process may use: a Slurm job sees fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
