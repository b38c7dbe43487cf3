"""Decoding image files into one uint8 tensor, with a pool of threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.core.errors import UserError
from harness.data._cache import cached, stem
from harness.data._config import FilesConfig, Resize, ShorterSide
from harness.data._decoding import cores, decode_one, square, unequal
from harness.data._mapped import mapped
from harness.data._raw import Raw, Split
from harness.data._residency import in_memory
from harness.data._source import LabelledFiles, Source

#: Files a task decodes; one task a file would spend a third of its time on the pool.
CHUNK = 256


def read_labelled(config: FilesConfig, files: LabelledFiles, further: Sequence[str] = ()) -> Raw:
    """All splits, decoded once and then from the cache; 255 means 1.0. In memory, or mapped, as the residency says.

    further: files that decide the labels. Raises UserError like `decode`, and like `mapped`.
    """
    pairs = [pair for split in files.splits.values() for pair in split]
    names, labels = [image for image, _ in pairs], torch.tensor([label for _, label in pairs])
    source, resize, fingerprint = files.source, config.resize, files.source.fingerprint([*further, *names])

    def raw(images: Tensor, digest: str | None = None) -> Raw:
        sizes = [len(split) for split in files.splits.values()]
        parts = zip(files.splits, images.split(sizes), labels.split(sizes), strict=True)
        splits = {split: Split(pixels, numbers) for split, pixels, numbers in parts}
        return Raw(splits["train"], splits["test"], splits.get("val"), files.class_names, 255, digest)

    shape = _shape(source, names[0], resize)
    if in_memory(config, len(names) * prod(shape)):
        return cached(config.name, fingerprint, _words(resize), lambda: raw(decode(source, names, resize)))
    key = stem(config.name, f"{_words(resize)}/{fingerprint}")
    return raw(*mapped(key, source, names, shape, resize, lambda images: raw(images).digest))


def _words(resize: Resize) -> str:
    """Of how images are decoded, in the names of files of the cache."""
    return f"shorter side {resize.shorter_side}" if isinstance(resize, ShorterSide) else str(resize)


def _shape(source: Source, name: str, resize: Resize) -> tuple[int, int, int]:
    """(C, H, W) of a decoded image."""
    if resize is None:
        height, width, channels = decode_one(source, name).shape
        return channels, height, width
    side = resize.shorter_side if isinstance(resize, ShorterSide) else resize
    return 3, side, side


def decode(source: Source, names: Sequence[str], resize: Resize) -> Tensor:
    """The images as RGB, uint8 (N, 3, H, W), in the order of `names`. Transparency is dropped.

    resize: how all images are made one size (bilinear), or None to keep theirs.
    Raises UserError, naming the file: damaged, more than 8 bits per channel, another mode that is not read, or another
    size than the first.
    """
    first = decode_one(source, names[0], resize)
    images = np.empty((len(names), 3, *first.shape[:2]), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(names))):
            image = decode_one(source, names[index], resize)
            if image.shape != first.shape:
                raise unequal(source, names[0], first.shape, names[index], image.shape)
            images[index] = image.transpose(2, 0, 1)

    with pool() as workers:
        for _ in workers.map(decode_chunk, range(0, len(names), CHUNK)):
            pass  # results come in order, so the first damaged file is the one named
    return torch.from_numpy(images)


def first_shape(source: Source, folders: Sequence[str], config: FilesConfig) -> tuple[int, int, int]:
    """(C, H, W) of the first image in these folders, as evaluation sees it.

    Raises UserError like `decode`, and where there is none.
    """
    image = next((name for folder in folders[:1] for name in source.names(folder)), None)
    if image is None:
        raise UserError(f"data.root: {source.show(folders[0] if folders else '.')} holds no images")
    height, width, channels = decode_one(source, image, config.resize).shape
    return channels, config.evaluation_crop or height, config.evaluation_crop or width


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (N, C, H, W), C 1 or 3 -> uint8 (N, C, side, side), bilinear like `decode`."""
    pixels = images.permute(0, 2, 3, 1).squeeze(3).numpy()
    result = np.stack([np.asarray(square(Image.fromarray(image), side)) for image in pixels])
    return torch.from_numpy(result.reshape(len(images), side, side, -1)).permute(0, 3, 1, 2).contiguous()


def pool() -> ThreadPoolExecutor:
    """Threads that decode, one a core: Pillow runs without the interpreter's lock."""
    return ThreadPoolExecutor(cores())
