"""Handwritten digits that ship with scikit-learn: 1797 real images of 8x8 pixels with values 0 to 16.

A fixed 397 of them are the test split, whatever a run's seed; by default 1200 train and 200 validate.
Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.seeding import sub_seed
from harness.data._config import DataConfig

if TYPE_CHECKING:
    from torch import Tensor

    from harness.data.base import Raw

TEST_COUNT = 397
MAX_VALUE = 16


class Config(DataConfig):
    """No files are needed: `root` and `download` change nothing."""

    name: Literal["digits"] = "digits"
    val_fraction: float = Field(default=1 / 7, gt=0, lt=0.5, description="part of the 1400 set aside")
    normalize: Literal["unit", "standardize"] = Field(
        default="unit", description="unit: [0, 1]; standardize: mean 0 and deviation 1 over train"
    )


def check(config: Config) -> None:
    """Nothing can be missing."""


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and the number of classes."""
    side = config.resize or 8
    return (1, side, side), 10


def read(config: Config) -> "Raw":
    """1400 images for training and validation, 397 for test; uint8 (N, 1, 8, 8), 16 means 1.0."""
    from harness.data._images import resized
    from harness.data._split import carve
    from harness.data.base import Raw, Split

    images, labels = _images()
    if config.resize is not None:
        images = resized(images, config.resize)
    everything = Split(images, labels)
    test, rest = carve(everything.labels, TEST_COUNT, sub_seed(0, "digits", "test"))
    return Raw(
        train=everything.take(rest),
        test=everything.take(test),
        val=None,
        class_names=tuple(str(name) for name in range(10)),
        max_value=MAX_VALUE,
    )


@cache  # parsing the text takes longer than building a small network
def _images() -> "tuple[Tensor, Tensor]":
    """All images, uint8 (1797, 1, 8, 8), and labels, int64. Not to be written to."""
    import torch

    table = _table()
    return torch.from_numpy(table[:, :-1]).to(torch.uint8).reshape(-1, 1, 8, 8), torch.from_numpy(table[:, -1]).long()


def _table() -> Any:
    """An array with a row for each image: 64 pixels and the label.

    The file is read without importing scikit-learn, which takes each process more than a second.
    """
    import numpy as np

    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a release that keeps the file elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
