"""CIFAR-100, SVHN and Fashion-MNIST from small files in the official formats. (CIFAR-10 has a file of its own.)"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch import Tensor
from torchvision import datasets

from harness.core.errors import UserError
from harness.data import check, load_dataset, prepare, shape
from harness.training.config import component

Writers = dict[str, Callable[..., Path]]
NAMES = ("cifar100", "svhn", "fashion_mnist")
KINDS = {"cifar100": "CIFAR100", "svhn": "SVHN", "fashion_mnist": "FashionMNIST"}
SHAPES = {"cifar100": ((3, 32, 32), 100), "svhn": ((3, 32, 32), 10), "fashion_mnist": ((1, 28, 28), 10)}

pytestmark = pytest.mark.filterwarnings("ignore:.*not the official")


def config(name: str, **settings: Any) -> Any:
    return component("data set", {"name": name, **{key: str(v) if key == "root" else v for key, v in settings.items()}})


def of_torchvision(name: str, root: Path, train: bool) -> tuple[Tensor, list[int]]:
    """Images (N, C, H, W) and labels as torchvision reads the same files."""
    if name == "svhn":
        found = datasets.SVHN(str(root), "train" if train else "test")
        return torch.from_numpy(found.data), found.labels.tolist()
    one = getattr(datasets, KINDS[name])(str(root), train=train)
    data = torch.as_tensor(one.data)
    return (data.permute(0, 3, 1, 2) if data.dim() == 4 else data[:, None]), list(map(int, one.targets))


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_labels_are_torchvisions(
    name: str, tmp_path: Path, make_official: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_official[name](tmp_path)
    for place in ("cifar", "svhn", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{place}.check_integrity", lambda *_: True)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    raw = prepare(config(name, root=tmp_path))
    assert (raw.val, raw.max_value) == (None, 255)  # type: ignore[union-attr]
    for split, train in ((raw.train, True), (raw.test, False)):  # type: ignore[union-attr]
        images, labels = of_torchvision(name, tmp_path, train)
        assert torch.equal(split.images, images)
        assert split.labels.tolist() == labels
        assert split.images.dtype == torch.uint8


@pytest.mark.parametrize("name", NAMES)
def test_they_load_as_data_sets(name: str, tmp_path: Path, make_official: Writers) -> None:
    folder = make_official[name](tmp_path)
    asked = config(name, root=tmp_path, resize=16, val_fraction=0.25)
    data = load_dataset(asked, 0, "cpu")
    channels, classes = SHAPES[name][0][0], SHAPES[name][1]
    assert shape(asked) == (data.input_shape, data.num_classes) == ((channels, 16, 16), classes)
    assert shape(config(name, root=folder)) == SHAPES[name], "root may be the folder itself"
    assert len(data.val) == (len(data.train) + len(data.val)) // 4


def test_names_of_classes(tmp_path: Path, make_official: Writers) -> None:
    for name in NAMES:
        make_official[name](tmp_path)
    named = {name: prepare(config(name, root=tmp_path)).class_names for name in NAMES}  # type: ignore[union-attr]
    assert named["cifar100"] == tuple(f"fine{i}" for i in range(100))
    assert named["svhn"] == tuple("0123456789")
    assert named["fashion_mnist"] == tuple(datasets.FashionMNIST.classes)


def test_compressed_files_do_as_well(tmp_path: Path, make_official: Writers) -> None:
    make_official["fashion_mnist"](tmp_path / "plain")
    make_official["fashion_mnist"](tmp_path / "packed", compressed=True)
    plain, packed = (prepare(config("fashion_mnist", root=tmp_path / name)) for name in ("plain", "packed"))
    assert plain.digest == packed.digest


@pytest.mark.parametrize(
    ("name", "first"), [(*NAMES[:1], "train"), ("svhn", "train_32x32.mat"), ("fashion_mnist", "train-")]
)
def test_missing_files_say_what_to_put_where(name: str, first: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root is not set.*download: true"):
        check(config(name))
    with pytest.raises(UserError, match=rf"data\.root: .* lacks {first}.*data\.download: true"):
        check(config(name, root=tmp_path))
    assert shape(config(name, root=tmp_path, download=True)) == SHAPES[name]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_download_is_read_and_a_failed_one_is_said(
    name: str, tmp_path: Path, make_official: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fails = getattr(datasets, KINDS[name]), True

    class Fetched(real):  # type: ignore[misc, valid-type]
        def __init__(self, root: str, split: str = "test", download: bool = False) -> None:
            if fails:
                raise URLError("no network")
            if split == "test":
                make_official[name](Path(root))

    monkeypatch.setattr(datasets, KINDS[name], Fetched)
    asked = config(name, root=tmp_path / "new", download=True, val_fraction=0.25)
    with pytest.raises(UserError, match=r"data\.download: .*no network"):
        prepare(asked)
    fails = False
    assert len(prepare(asked).train) in (40, 200)  # type: ignore[union-attr]


BROKEN: dict[str, tuple[str, str, bytes | dict[str, Any]]] = {
    "truncated pickle": ("cifar100", "cifar-100-python/train", pickle.dumps({"data": 1})[:-3]),
    "labels of another kind": (
        "cifar100",
        "cifar-100-python/train",
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}),
    ),
    "no MATLAB": ("svhn", "test_32x32.mat", b"text"),
    "no labels": ("svhn", "test_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8)}),
    "other sizes": ("svhn", "test_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1))}),
    "short header": ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08"),
    "short content": ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x05\1"),
    "another type": ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x09\x01\0\0\0\x01\1"),
    "other images": ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_with_other_content_is_named(case: str, tmp_path: Path, make_official: Writers) -> None:
    name, place, content = BROKEN[case]
    make_official[name](tmp_path)
    if isinstance(content, dict):
        savemat(tmp_path / place, content)
    else:
        (tmp_path / place).write_bytes(content)
    with pytest.raises(UserError) as refused:
        prepare(config(name, root=tmp_path))
    assert str(tmp_path / place) in str(refused.value).replace("images-idx3", "labels-idx1")


def test_labels_beyond_the_classes_are_refused(tmp_path: Path, make_official: Writers) -> None:
    folder = make_official["fashion_mnist"](tmp_path)
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(UserError, match=r"has labels outside 0 to 9"):
        prepare(config("fashion_mnist", root=tmp_path))


@pytest.mark.filterwarnings("default:.*not the official")
def test_files_that_are_not_the_official_ones_are_said_so(tmp_path: Path, make_official: Writers) -> None:
    make_official["svhn"](tmp_path)
    with pytest.warns(UserWarning, match=r"not the official SVHN \(train_32x32\.mat, test_32x32\.mat differ"):
        prepare(config("svhn", root=tmp_path))
