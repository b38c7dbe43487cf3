"""CIFAR-100 from its official Python files: 50000 images for training, 10000 for test, 32x32 RGB, 100 fine classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-100 python version").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.data import _cifar
from harness.data._config import DataConfig
from harness.data._official import Official

if TYPE_CHECKING:
    from harness.data._official import Arrays


class Config(DataConfig):
    """`root` holds `cifar-100-python/`, or is that folder; `download: true` fetches it there once."""

    name: Literal["cifar100"] = "cifar100"


def _names(folder: Path | None) -> Sequence[str]:
    return [""] * 100 if folder is None else _cifar.names_of(folder / "meta", "fine_label_names")


def _decode(folder: Path) -> "tuple[Arrays, Arrays]":
    classes = len(_names(folder))
    train, test = (_cifar.batches([folder / name], "fine_labels", classes) for name in ("train", "test"))
    return train, test


_FILES = Official(
    title="CIFAR-100",
    kind="CIFAR100",
    folder="cifar-100-python",
    files=("train", "test", "meta"),
    unpack="unpack cifar-100-python.tar.gz",
    image=(3, 32, 32),
    class_names=_names,
    decode=_decode,
    sums=_cifar.sums,
)
check, shape, read = _FILES.check, _FILES.shape, _FILES.read
