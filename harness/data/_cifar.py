"""The pickled files of CIFAR-10 and CIFAR-100, read without running what a pickle may hold."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

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


def sums(kind: Any) -> list[tuple[str, str]]:
    """MD5 sums of the official files, by torchvision's class."""
    return [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]


def names_of(path: Path, key: str) -> list[str]:
    """The names of the classes. Raises UserError for a file without them."""
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not names:
        raise UserError(f"data.root: {path} holds no {key}")
    return [str(name) for name in names]


def batches(paths: list[Path], key: str, classes: int) -> "tuple[np.ndarray, np.ndarray]":
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of some files. key: of the labels."""
    import numpy as np

    found = [_batch(path, key, classes) for path in paths]
    pixels = np.concatenate([pixels for pixels, _ in found]).reshape(-1, 3, 32, 32)
    return pixels, np.concatenate([labels for _, labels in found])


def _batch(path: Path, key: str, classes: int) -> "tuple[np.ndarray, np.ndarray]":
    """Pixels, uint8 (N, 3072), and labels, int64 (N,), of one file. Raises UserError if they are not that."""
    import numpy as np

    content = _unpickle(path)
    pixels, labels = np.asarray(content.get("data")), np.asarray(content.get(key))
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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        if name in ("_reconstruct", "_frombuffer"):  # where these live depends on NumPy's version: ask NumPy
            import numpy as np

            return np.empty(0).__reduce_ex__(2 if name == "_reconstruct" else 5)[0]
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()  # written by Python 2
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"data.root: cannot read {path}: {error}; unpack the official archive anew") from error
    if not isinstance(content, dict):
        raise UserError(f"data.root: {path} is no CIFAR file")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
