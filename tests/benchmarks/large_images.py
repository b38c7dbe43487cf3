"""The input path at 224 pixels beside torchvision's DataLoader with the same transforms: images per second and core.

    python tests/benchmarks/large_images.py [--tiny]

The reference: ImageFolder, RandomResizedCrop and RandomHorizontalFlip (in evaluation Resize and CenterCrop), ToTensor,
Normalize, in a DataLoader without workers. The product: `image_folder` with `residency: disk`, which decodes once, into
a file that is mapped. Both see the same JPEG files of ImageNet's usual size, on one thread; seconds are those of the
processor, all threads together, so that what else runs here does not count. Decoding is a row of its own.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_report import Clock, Row, figure
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from harness.data import load_dataset, prepare
from harness.data._ahead import drawn_ahead
from harness.data.image_folder import Config

SIDE, CROP, BATCH = 256, 224, 32
WIDTH, HEIGHT = 500, 375
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REFERENCE = "torchvision's transforms in a DataLoader"


def write_images(root: Path, count: int) -> None:
    """JPEG files with coarse shapes and fine noise, of two classes; a fifth tests."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
        pixels = np.asarray(coarse) + rng.normal(0, 12, (HEIGHT, WIDTH, 1))
        path = root / ("test" if index % 5 == 0 else "train") / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def theirs(root: Path, split: str) -> Iterator[Any]:
    """A pass over a split."""
    crop: list[Any] = [transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip()]
    if split == "test":
        crop = [transforms.Resize(SIDE), transforms.CenterCrop(CROP)]
    chain = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    found = datasets.ImageFolder(str(root / split), chain)
    return iter(DataLoader(found, BATCH, shuffle=split == "train", num_workers=0))


def ours(data: Any, split: str) -> Iterator[Any]:
    """The same of the product."""
    if split == "test":
        yield from data.batches(data.test, BATCH)
        return
    batches = torch.randperm(len(data.train)).split(BATCH)
    with drawn_ahead(data, batches):
        for number, indices in enumerate(batches):
            yield data.train_batch(indices, torch.Generator().manual_seed(number))


def rate(work: Callable[[], Iterator[Any]]) -> float:
    """Images per second of processor time."""
    begun = time.process_time()
    images = sum(len(labels) for _, labels in work())
    return images / (time.process_time() - begun)


@contextmanager
def one_thread() -> Iterator[None]:
    """For torch and for decoding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compared(root: Path, data: Any, split: str, rounds: int) -> Row:
    """A pass over a split by each in turn."""
    clock, what = Clock(), "training batches" if split == "train" else "evaluation batches"
    pairs = [(rate(lambda: ours(data, split)), rate(lambda: theirs(root, split))) for _ in range(rounds + 1)][
        1:
    ]  # the first warms up
    mine, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    more = {"images_per_second_and_core": round(mine), "reference_images_per_second_and_core": round(other)}
    return figure(
        f"{what} at {CROP} pixels, images per second and core",
        REFERENCE,
        ratio,
        goal=1.5,
        compare=">=",
        seconds=clock.lap(),
        rounds=rounds,
        **more,
    )


def decoding(root: Path, count: int) -> Row:
    """Filling the cache once, in this process, beside a pass of the reference over all images."""
    clock = Clock()
    begun = time.process_time()
    with mock.patch("harness.data._mapped.CHUNK", count):  # no further process, whose seconds would not count
        prepare(config(root))
    mine = count / (time.process_time() - begun)
    other = rate(lambda: itertools.chain(theirs(root, "train"), theirs(root, "test")))
    return figure(
        f"decoding once into the cache, {SIDE} pixels, images per second and core",
        f"an epoch of {REFERENCE}",
        mine / other,
        seconds=clock.lap(),
        images_per_second_and_core=round(mine),
        reference_images_per_second_and_core=round(other),
    )


def config(root: Path) -> Config:
    """The product's settings."""
    resize, augment = {"shorter_side": SIDE, "crop": CROP}, {"random_resized_crop": {}, "flip": True}
    return Config.model_validate({"root": root, "residency": "disk", "resize": resize, "augment": augment})


def measure(tiny: bool = False) -> list[Row]:
    """All rows."""
    count = 40 if tiny else 400
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"HARNESS_CACHE": f"{folder}/cache"}):
        root = Path(folder) / "images"
        write_images(root, count)
        with one_thread():
            first = decoding(root, count)
            with mock.patch("harness.data._mapped.CHUNK", count):
                data = load_dataset(config(root), 0, "cpu")
            rounds = 1 if tiny else 3
            return [*(compared(root, data, split, rounds) for split in ("train", "test")), first]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("large_images")
