"""Fashion-MNIST from its official files: 60000 images for training, 10000 for test, 28x28 grey, 10 classes.

Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, 2017, arXiv 1708.07747.
"""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.errors import UserError
from harness.data._config import DataConfig
from harness.data._official import Official, contents

if TYPE_CHECKING:
    import numpy as np

    from harness.data._official import Arrays

_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Config(DataConfig):
    """`root` holds `FashionMNIST/raw/`, or is that folder; `download: true` fetches it there once."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


def _arrays(folder: Path, images: str, labels: str) -> "Arrays":
    import numpy as np

    pixels, numbers = _idx(folder, images, 3), _idx(folder, labels, 1)
    if not len(numbers) or pixels.shape != (len(numbers), 28, 28):
        raise UserError(f"data.root: {folder / images} does not hold 28x28 pixels for each of {len(numbers)} labels")
    return pixels[:, None].copy(), numbers.astype(np.int64)


def _idx(folder: Path, name: str, dimensions: int) -> "np.ndarray":
    """The bytes in a file of the IDX format: 0, 0, 8 for bytes, their dimensions, the sizes, all of them big-endian."""
    import numpy as np

    try:
        content = contents(folder, name)
        sizes = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != 4 + 4 * dimensions + prod(sizes):
            raise ValueError("its header does not fit what follows")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"data.root: cannot read {folder / name}: {error}; fetch it anew") from error


_FILES = Official(
    "Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw", (*_TRAIN, *_TEST), "put its four files there", (1, 28, 28),
    class_names=lambda folder: _NAMES,
    decode=lambda folder: (_arrays(folder, *_TRAIN), _arrays(folder, *_TEST)),
    sums=lambda kind: [(name, md5) for name, md5 in kind.resources],
)  # fmt: skip
check, shape, read = _FILES.check, _FILES.shape, _FILES.read
