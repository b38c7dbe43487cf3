"""Street View House Numbers, cropped digits: 73257 images for training, 26032 for test, 32x32 RGB, 10 classes.

Source: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011,
http://ufldl.stanford.edu/housenumbers ("Format 2"; its `extra` images are not used).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.errors import UserError
from harness.data._config import DataConfig
from harness.data._official import Official

if TYPE_CHECKING:
    from harness.data._official import Arrays


class Config(DataConfig):
    """`root` holds `train_32x32.mat` and `test_32x32.mat`; `download: true` fetches them there once."""

    name: Literal["svhn"] = "svhn"


def _arrays(path: Path) -> "Arrays":
    import numpy as np
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        pixels, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"data.root: cannot read {path}: {type(error).__name__}: {error}; fetch it anew") from error
    if pixels.dtype != np.uint8 or not len(labels) or pixels.shape != (32, 32, 3, len(labels)):
        raise UserError(f"data.root: {path} does not hold images of 32x32 pixels and a label for each")
    labels[labels == 10] = 0  # the files call the digit 0 so
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels


def _fetch(kind: Any, root: str) -> None:
    for split in ("train", "test"):
        kind(root, split, download=True)


_FILES = Official(
    title="SVHN",
    kind="SVHN",
    folder="",
    files=("train_32x32.mat", "test_32x32.mat"),
    unpack="put train_32x32.mat and test_32x32.mat there",
    image=(3, 32, 32),
    class_names=lambda folder: "0123456789",
    decode=lambda folder: (_arrays(folder / "train_32x32.mat"), _arrays(folder / "test_32x32.mat")),
    sums=lambda kind: [(name, md5) for _, name, md5 in kind.split_list.values()],
    fetch=_fetch,
)
check, shape, read = _FILES.check, _FILES.shape, _FILES.read
