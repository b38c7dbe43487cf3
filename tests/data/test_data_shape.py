"""The shape that a data set tells beforehand is that of what it reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import data
from harness.core.errors import UserError
from harness.training.config import component

Writer = Callable[[Path], Path]


@pytest.fixture
def roots(
    tmp_path: Path, make_official: dict[str, Writer], make_tiny_imagenet: Writer, make_folder: Callable[..., Path]
) -> dict[str, Path]:
    return {
        **{name: write(tmp_path / name) for name, write in make_official.items()},
        "tiny_imagenet": make_tiny_imagenet(tmp_path / "tiny"),
        "image_folder": make_folder(tmp_path / "folder", train=4, test=2),
        "digits": tmp_path,
    }


#: Further data sets that read files, with settings that they need.
FILES: dict[str, dict[str, Any]] = {"image_folder": {}, "image_pairs": {"scale": 2}, "text": {"context": 8}}


@pytest.mark.parametrize("resize", [None, 5])
@pytest.mark.parametrize("name", ["digits", "cifar10", "tiny_imagenet", "image_folder"])
@pytest.mark.filterwarnings("ignore:.*not the official")
def test_it_is_that_of_what_is_read(roots: dict[str, Path], name: str, resize: int | None) -> None:
    config = component("data set", {"name": name, "root": str(roots[name]), "resize": resize, "val_fraction": 0.25})
    dataset = data.load_dataset(config, 0, "cpu")
    assert data.shape(config) == (dataset.input_shape, dataset.num_classes)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist", "tiny_imagenet", "image_folder"])
def test_data_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.root: nothing is at"):
        data.shape(component("data set", {"name": name, "root": str(tmp_path / "nowhere")}))


ROOTS = {
    "nothing there": ("nowhere", "nothing is at"),
    "empty folder": ("empty", "lacks|no folder train|no wnids|no folder|holds no file"),
}


@pytest.mark.parametrize(("root", "said"), ROOTS.values(), ids=ROOTS)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist", "tiny_imagenet", *FILES])
def test_the_whole_path_that_was_looked_at_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, root: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"^data\.\w+: .*({said})") as caught:
        data.check(component("data set", {"name": name, "root": root, **FILES.get(name, {})}))
    assert f"({tmp_path / root}" in str(caught.value)
    assert "; data.root is relative to the working directory)" in str(caught.value)


def test_files_to_be_fetched_are_not_fetched(tmp_path: Path) -> None:
    config = component("data set", {"name": "cifar10", "root": str(tmp_path), "download": True})
    assert data.shape(config) == ((3, 32, 32), 10)
    assert not list(tmp_path.iterdir())


def test_a_class_folder_without_images_is_named(roots: dict[str, Path]) -> None:
    for path in (roots["image_folder"] / "train/cat").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="train/cat holds no images"):
        data.shape(component("data set", {"name": "image_folder", "root": str(roots["image_folder"])}))
