"""Tiny-ImageNet from a small copy of the official layout, as folders and as a zip file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.core.errors import UserError
from harness.data import check, load_dataset, prepare
from harness.data.tiny_imagenet import Config

Writer = Callable[..., Path]


def zipped(folder: Path) -> Path:
    """`folder` as a zip file beside it; the folder itself goes."""
    path = shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    return Path(path)


def test_pixels_and_labels(tmp_path: Path, make_tiny_imagenet: Writer) -> None:
    folder = make_tiny_imagenet(tmp_path)
    raw = prepare(Config(root=tmp_path))
    assert raw.class_names == ("goldfish", "tench", "bullfrog")  # by sorted WordNet id
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert raw.test.labels.tolist() == [2, 0, 1, 2, 0, 1]  # val_annotations.txt gives n03, n01, n02, ...
    for split, index, name in ((raw.train, 9, "train/n03/images/n03_1.JPEG"), (raw.test, 4, "val/images/val_4.JPEG")):
        expected = torch.from_numpy(np.array(Image.open(folder / name))).permute(2, 0, 1)
        assert torch.equal(split.images[index], expected)


def test_the_official_val_is_test_and_val_is_carved(tmp_path: Path, make_tiny_imagenet: Writer) -> None:
    make_tiny_imagenet(tmp_path)
    data = load_dataset(Config(root=tmp_path, val_fraction=0.25), seed=0, device="cpu")
    assert (len(data.train), len(data.val), len(data.test)) == (9, 3, 6)
    assert data.val.labels.tolist() == [0, 1, 2]


def test_folder_and_zip_file_hold_the_same(tmp_path: Path, make_tiny_imagenet: Writer) -> None:
    folder = make_tiny_imagenet(tmp_path)
    digest = prepare(Config(root=tmp_path)).digest
    assert prepare(Config(root=folder)).digest == digest
    path = zipped(folder)
    for root in (tmp_path, path):
        check(Config(root=root))
        assert prepare(Config(root=root)).digest == digest


def test_missing_roots_say_what_to_put_where(tmp_path: Path) -> None:
    for config in (Config(), Config(root=tmp_path / "absent"), Config(root=tmp_path)):
        with pytest.raises(UserError, match=r"data\.root.*tiny-imagenet-200/ or tiny-imagenet-200\.zip"):
            check(config)
    with pytest.raises(UserError, match=r"data\.download.*tiny-imagenet-200\.zip"):
        check(Config(root=tmp_path, download=True))


@pytest.mark.parametrize("name", ["words.txt", "val/val_annotations.txt"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_a_missing_file_is_named(tmp_path: Path, make_tiny_imagenet: Writer, name: str, as_zip: bool) -> None:
    folder = make_tiny_imagenet(tmp_path)
    (folder / name).unlink()
    if as_zip:
        zipped(folder)
    with pytest.raises(UserError, match=name):
        check(Config(root=tmp_path))


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_class_without_images_is_named(tmp_path: Path, make_tiny_imagenet: Writer, as_zip: bool) -> None:
    folder = make_tiny_imagenet(tmp_path)
    shutil.rmtree(folder / "train" / "n02" / "images")
    if as_zip:
        zipped(folder)
    with pytest.raises(UserError, match="train/n02/images holds no images"):
        check(Config(root=tmp_path))


def test_annotations_must_name_classes_and_images(tmp_path: Path, make_tiny_imagenet: Writer) -> None:
    folder = make_tiny_imagenet(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    for line, message in (
        ("val_0.JPEG\tn77\t0\t0\t1\t1\n", "line 7 names no class"),
        ("val_9.JPEG\tn01\t0\t0\t1\t1\n", "line 7 names an image that is missing"),
        ("val_0.JPEG\n", "line 7 names no class"),
    ):
        whole = annotations.read_text()
        annotations.write_text(whole + line)
        with pytest.raises(UserError, match=message):
            check(Config(root=tmp_path))
        annotations.write_text(whole)
    annotations.write_text("")
    with pytest.raises(UserError, match="names no images"):
        check(Config(root=tmp_path))


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_damaged_image_is_named(tmp_path: Path, make_tiny_imagenet: Writer, as_zip: bool) -> None:
    folder = make_tiny_imagenet(tmp_path)
    (folder / "train" / "n02" / "images" / "n02_3.JPEG").write_bytes(b"damaged")
    if as_zip:
        zipped(folder)
    with pytest.raises(UserError, match=r"n02_3\.JPEG"):
        prepare(Config(root=tmp_path))


def test_a_truncated_zip_file_is_named(tmp_path: Path, make_tiny_imagenet: Writer) -> None:
    path = zipped(make_tiny_imagenet(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip is no complete zip file"):
        check(Config(root=tmp_path))
