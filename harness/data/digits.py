"""Handwritten digits that ship with scikit-learn: 1797 real images of 8x8 pixels with values 0 to 16.

A fixed 397 of them are the test split, whatever a run's seed; by default 1200 train and 200 validate.
Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.core.seeding import sub_seed
from harness.data._config import DataConfig

if TYPE_CHECKING:
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


def read(config: Config) -> "Raw":
    """1400 images for training and validation, 397 for test; uint8 (N, 1, 8, 8), 16 means 1.0."""
    import torch
    from sklearn.datasets import load_digits

    from harness.data._images import resized
    from harness.data._split import carve
    from harness.data.base import Raw, Split

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    if config.resize is not None:
        images = resized(images, config.resize)
    everything = Split(images, torch.from_numpy(digits.target).long())
    test, rest = carve(everything.labels, TEST_COUNT, sub_seed(0, "digits", "test"))
    return Raw(
        train=everything.take(rest),
        test=everything.take(test),
        val=None,
        class_names=tuple(str(name) for name in digits.target_names),
        max_value=MAX_VALUE,
    )
