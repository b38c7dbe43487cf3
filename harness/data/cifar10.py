"""CIFAR-10 from its official Python files: 50000 images for training, 10000 for test, 32x32 RGB, 10 classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-10 python version").
"""

import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.errors import UserError
from harness.data._config import DataConfig, root_of

if TYPE_CHECKING:
    import numpy as np

    from harness.data.base import Raw, Split

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILES = ("test_batch",)
META_FILE = "batches.meta"
LAYOUT = f"a folder holding {FOLDER}/ as {ARCHIVE} has it (data.download: true fetches it there)"

#: All that the official files name, and the same things by the names that newer versions of NumPy write.
ALLOWED_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class Config(DataConfig):
    """`root` holds `cifar-10-batches-py/`, or is that folder; `download: true` fetches it there once."""

    name: Literal["cifar10"] = "cifar10"


def check(config: Config) -> None:
    """Raises UserError where a file is missing and `download` does not ask for it."""
    if config.root is None or not config.download:
        folder = _folder(root_of(config, LAYOUT))
        missing = _missing(folder)
        if missing:
            raise UserError(
                f"data.root: {folder} lacks {', '.join(missing)}: unpack {ARCHIVE} so that "
                f"{folder / TRAIN_FILES[0]} exists, or set data.download: true to fetch it"
            )


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and the number of classes: what the official files have, where they are still to be fetched."""
    check(config)
    side = config.resize or 32
    folder = _folder(config.root.expanduser()) if config.root is not None else Path()
    return (3, side, side), 10 if _missing(folder) else len(_label_names(folder))


def read(config: Config) -> "Raw":
    """uint8 (N, 3, 32, 32), 255 means 1.0. Raises UserError: files missing, damaged or not to be fetched."""
    from harness.data._cache import cached
    from harness.data._source import Folder

    check(config)
    assert config.root is not None  # check refuses it
    root = config.root.expanduser()
    if config.download and _missing(_folder(root)):
        _download(root)
    folder = _folder(root)
    key = Folder(folder).fingerprint([*TRAIN_FILES, *TEST_FILES, META_FILE])
    return cached("cifar10", key, config.resize, lambda: _decode(folder, config.resize))


def _folder(root: Path) -> Path:
    return root if (root / TEST_FILES[0]).is_file() else root / FOLDER


def _missing(folder: Path) -> list[str]:
    return [name for name in (*TRAIN_FILES, *TEST_FILES, META_FILE) if not (folder / name).is_file()]


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(root), download=True)  # verifies checksums before it unpacks
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise UserError(
            f"data.download: CIFAR-10 could not be fetched from {CIFAR10.url} to {root}: {error}; "
            f"fetch it elsewhere and put {FOLDER}/ there"
        ) from error


def _decode(folder: Path, resize: int | None) -> "Raw":
    from harness.data.base import Raw

    _warn_unless_official(folder)
    names = _label_names(folder)
    return Raw(
        train=_split([folder / name for name in TRAIN_FILES], len(names), resize),
        test=_split([folder / name for name in TEST_FILES], len(names), resize),
        val=None,
        class_names=tuple(str(name) for name in names),
        max_value=255,
    )


def _label_names(folder: Path) -> list[str]:
    names = _unpickle(folder / META_FILE).get("label_names")
    if not isinstance(names, list) or not names:
        raise UserError(f"data.root: {folder / META_FILE} holds no label_names")
    return names


def _split(paths: list[Path], classes: int, resize: int | None) -> "Split":
    import numpy as np
    import torch

    from harness.data._images import resized
    from harness.data.base import Split

    batches = [_batch(path, classes) for path in paths]
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32))
    labels = torch.from_numpy(np.concatenate([numbers for _, numbers in batches]))
    return Split(images if resize is None else resized(images, resize), labels)


def _batch(path: Path, classes: int) -> "tuple[np.ndarray, np.ndarray]":
    """Pixels, uint8 (N, 3072), and labels, int64 (N,), of one file. Raises UserError if they are not that."""
    import numpy as np

    content = _unpickle(path)
    pixels, labels = np.asarray(content.get("data")), np.asarray(content.get("labels"))
    whole = labels.ndim == 1 and labels.dtype.kind in "iu" and pixels.dtype == np.uint8
    if not whole or not len(labels) or pixels.shape != (len(labels), 3072):
        raise UserError(f"data.root: {path} does not hold images of 3072 bytes and a label for each")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"data.root: {path} has labels outside 0 to {classes - 1}")
    return pixels, labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any program as it loads. This one may build arrays, lists and text, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        if name in ("_reconstruct", "_frombuffer"):  # where these live depends on NumPy's version: ask NumPy
            import numpy as np

            return np.empty(0).__reduce_ex__(2 if name == "_reconstruct" else 5)[0]
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()  # written by Python 2
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"data.root: cannot read {path}: {error}; unpack {ARCHIVE} anew") from error
    if not isinstance(content, dict):
        raise UserError(f"data.root: {path} is no CIFAR-10 file")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


def _warn_unless_official(folder: Path) -> None:
    """Say, when files are first read, if they differ from the official ones; the record has their digest."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5

    pairs = [*CIFAR10.train_list, *CIFAR10.test_list, (META_FILE, CIFAR10.meta["md5"])]
    changed = [name for name, md5 in pairs if not check_md5(folder / name, md5)]
    if changed:
        warnings.warn(
            f"{folder}: not the official CIFAR-10 ({', '.join(changed)} differ); do not compare with papers",
            stacklevel=2,
        )
