"""CIFAR-10 from its official Python files: 50000 images for training, 10000 for test, 32x32 RGB, 10 classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-10 python version").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.data import _cifar
from harness.data._config import DataConfig
from harness.data._official import Official

if TYPE_CHECKING:
    from harness.data._official import Arrays

_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_META, _TEST = "batches.meta", "test_batch"


class Config(DataConfig):
    """`root` holds `cifar-10-batches-py/`, or is that folder; `download: true` fetches it there once."""

    name: Literal["cifar10"] = "cifar10"


def _names(folder: Path | None) -> Sequence[str]:
    return [""] * 10 if folder is None else _cifar.names_of(folder / _META, "label_names")


def _decode(folder: Path) -> "tuple[Arrays, Arrays]":
    classes = len(_names(folder))
    train = _cifar.batches([folder / name for name in _TRAIN], "labels", classes)
    return train, _cifar.batches([folder / _TEST], "labels", classes)


_FILES = Official(
    title="CIFAR-10",
    kind="CIFAR10",
    folder="cifar-10-batches-py",
    files=(*_TRAIN, _TEST, _META),
    unpack="unpack cifar-10-python.tar.gz",
    image=(3, 32, 32),
    class_names=_names,
    decode=_decode,
    sums=_cifar.sums,
)
check, shape, read = _FILES.check, _FILES.shape, _FILES.read
