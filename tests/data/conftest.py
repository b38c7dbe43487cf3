"""Small data sets in the real file formats, made on the spot, and a cache folder of each test's own."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

CLASSES = ("cat", "dog", "eel")
WNIDS = ("n03", "n01", "n02")  # not sorted, as in the official file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; nothing is in it yet."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """A random image, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, seed: int, **size: int) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, **size)).save(path)
    return pixels(seed, **size)


def write_folder(root: Path, **counts: int) -> Path:
    """`train=4` makes 4 PNG images for each class of that split; each image has its own seed."""
    seed = 0
    for split, count in counts.items():
        for name in CLASSES:
            for index in range(count):
                write_image(root / split / name / f"{index}.png", seed)
                seed += 1
    return root


def write_cifar10(root: Path, per_file: int = 20, protocol: int = 2) -> Path:
    """Six files in the official pickled format, random pixels, 10 classes in turn."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            "batch_label": f"of {name}",
            "labels": [index % 10 for index in range(per_file)],
            "data": rng.integers(0, 256, (per_file, 3072), dtype=np.uint8),
            "filenames": [f"{index}.png" for index in range(per_file)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    meta = {"num_cases_per_batch": per_file, "label_names": [f"class{i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return folder


def write_cifar100(root: Path, count: int = 200) -> Path:
    """Three files in the official pickled format, random pixels, 100 classes in turn."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        content = {
            "filenames": [f"{index}.png" for index in range(count)],
            "fine_labels": [index % 100 for index in range(count)],
            "coarse_labels": [index % 20 for index in range(count)],
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {
        "fine_label_names": [f"fine{i}" for i in range(100)],
        "coarse_label_names": [f"coarse{i}" for i in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def write_svhn(root: Path, count: int = 40) -> Path:
    """Two files of MATLAB's format, random pixels, labels 1 to 10 in turn: 10 is the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)
        savemat(
            root / f"{name}_32x32.mat", {"X": rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels}
        )
    return root


def write_fashion_mnist(root: Path, count: int = 40, compressed: bool = False) -> Path:
    """Four files of the IDX format, random pixels, 10 classes in turn."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        for kind, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes)
            values = rng.integers(0, 256, sizes, dtype=np.uint8) if len(sizes) > 1 else np.arange(count) % 10
            content = header + values.astype(np.uint8).tobytes()
            path = folder / f"{name}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


def write_tiny_imagenet(root: Path) -> Path:
    """The official layout with 3 classes, 4 training images each, and 6 labelled images in val/."""
    folder = root / "tiny-imagenet-200"
    seed = 0
    for wnid in WNIDS:
        for index in range(4):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", seed)
            seed += 1
    lines = []
    for index in range(6):
        write_image(folder / "val" / "images" / f"val_{index}.JPEG", 100 + index)
        lines.append(f"val_{index}.JPEG\t{WNIDS[index % 3]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttench\nn03\tbullfrog, frog\nn09\tx\n")
    return folder


Writer = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with 4 training and 2 test images a class."""
    return write_folder(tmp_path / "photos", train=4, test=2)


@pytest.fixture
def make_folder() -> Writer:
    return write_folder


@pytest.fixture
def make_image() -> Callable[..., np.ndarray]:
    return write_image


@pytest.fixture
def make_cifar10() -> Writer:
    return write_cifar10


@pytest.fixture
def make_tiny_imagenet() -> Writer:
    return write_tiny_imagenet


@pytest.fixture
def make_official() -> dict[str, Writer]:
    """What writes the files of each data set that torchvision can fetch, by its name."""
    return {
        "cifar10": write_cifar10,
        "cifar100": write_cifar100,
        "svhn": write_svhn,
        "fashion_mnist": write_fashion_mnist,
    }
