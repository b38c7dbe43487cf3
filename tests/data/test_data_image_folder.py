"""A folder of images: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.core.errors import UserError
from harness.data import check, load_dataset, prepare
from harness.data.image_folder import Config

MakeImage = Callable[..., np.ndarray]


def refused_by_check(config: Config) -> str:
    """The message; `prepare` must raise the same."""
    with pytest.raises(UserError) as refused:
        check(config)
    with pytest.raises(UserError) as again:
        prepare(config)
    assert str(refused.value) == str(again.value)
    return str(refused.value)


def refused_by_decoding(config: Config) -> str:
    check(config)
    with pytest.raises(UserError) as refused:
        prepare(config)
    return str(refused.value)


def test_pixels_and_labels(folder: Path, make_image: MakeImage) -> None:
    raw = prepare(Config(root=folder))
    assert raw.class_names == ("cat", "dog", "eel")
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert raw.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert raw.max_value == 255
    expected = make_image(folder / "elsewhere.png", seed=5)  # the sixth image written: dog/1.png
    assert torch.equal(raw.train.images[5], torch.from_numpy(expected).permute(2, 0, 1))


def test_val_is_carved_unless_it_is_there(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    config = Config(root=make_folder(tmp_path / "a", train=4, test=2), val_fraction=0.25)
    carved = load_dataset(config, seed=0, device="cpu")
    assert carved.val.labels.tolist() == [0, 1, 2]
    assert len(carved.train) == 9
    config = Config(root=make_folder(tmp_path / "b", train=4, val=3, test=2))
    given = [load_dataset(config, seed, "cpu") for seed in (0, 1)]
    assert len(given[0].val) == 9
    assert len(given[0].train) == 12
    assert torch.equal(given[0].val.images, given[1].val.images)


def test_grey_palette_and_transparent_images_become_rgb(folder: Path) -> None:
    colours = Image.open(folder / "train" / "cat" / "0.png")
    for index, mode in enumerate(("L", "RGBA", "P", "1")):
        colours.convert(mode).save(folder / "train" / "eel" / f"{index}.png")
    raw = prepare(Config(root=folder))
    grey = raw.train.images[8]
    assert raw.train.images.shape == (12, 3, 8, 8)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], torch.from_numpy(np.array(colours.convert("L"))))
    assert torch.equal(raw.train.images[9], raw.train.images[0])


def test_hidden_and_other_files_do_not_count(folder: Path) -> None:
    before = prepare(Config(root=folder)).digest
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"x")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "README").write_text("")
    assert prepare(Config(root=folder)).digest == before


def test_images_below_a_class_folder_count(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "train" / "cat" / "more" / "deep.PNG", seed=1)
    assert prepare(Config(root=folder)).train.labels.tolist().count(0) == 5


def test_more_files_than_one_task_decodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(Config(root=folder)).digest
    monkeypatch.setattr("harness.data._images.CHUNK", 4)
    monkeypatch.setenv("HARNESS_CACHE", str(folder / "fresh"))
    assert prepare(Config(root=folder)).digest == whole


def test_resize(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "train" / "cat" / "wide.png", seed=1, height=5, width=30)
    raw = prepare(Config(root=folder, resize=6))
    assert raw.train.images.shape == (13, 3, 6, 6)
    wide = Image.open(folder / "train" / "cat" / "wide.png").resize((6, 6), Image.Resampling.BILINEAR)
    assert torch.equal(raw.train.images[4], torch.from_numpy(np.array(wide)).permute(2, 0, 1))


def test_digest_names_the_pixels(folder: Path, make_image: MakeImage) -> None:
    before = prepare(Config(root=folder)).digest
    make_image(folder / "test" / "eel" / "1.png", seed=999)
    assert prepare(Config(root=folder)).digest != before


def test_unset_and_missing_roots_say_what_to_put_where(tmp_path: Path) -> None:
    for config in (Config(), Config(root=tmp_path / "absent")):
        message = refused_by_check(config)
        assert "data.root" in message
        assert "train/<class>" in message
        assert "--set data.root=PATH" in message
    assert str(tmp_path / "absent") in message


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    check(Config(root="~/photos"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_train_and_test_are_needed(folder: Path, split: str) -> None:
    (folder / split).rename(folder / "other")
    message = refused_by_check(Config(root=folder))
    assert f"{folder} has no folder {split}/" in message


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    for image in (folder / "test" / "dog").iterdir():
        image.unlink()
    assert str(folder / "test" / "dog") in refused_by_check(Config(root=folder))


def test_classes_must_be_the_same_in_each_split(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "test" / "fox" / "0.png", seed=0)
    assert "test has class folders that train/ lacks: fox" in refused_by_check(Config(root=folder))
    make_image(folder / "train" / "fox" / "0.png", seed=0)
    make_image(folder / "train" / "gnu" / "0.png", seed=0)
    assert "test lacks class folders that train/ has: gnu" in refused_by_check(Config(root=folder))


def test_one_class_is_too_few(tmp_path: Path, make_image: MakeImage) -> None:
    for split in ("train", "test"):
        make_image(tmp_path / split / "cat" / "0.png", seed=0)
    assert "two or more classes" in refused_by_check(Config(root=tmp_path))


def test_downloads_are_refused(folder: Path) -> None:
    assert "data.download" in refused_by_check(Config(root=folder, download=True))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_a_damaged_image_is_named(folder: Path, make_image: MakeImage, damage: str) -> None:
    path = folder / "train" / "dog" / "2.jpg"
    make_image(path, seed=0, height=8, width=8)
    whole = path.read_bytes()
    path.write_bytes({"text": b"not an image", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    assert f"cannot decode {path}" in refused_by_decoding(Config(root=folder))


def test_sixteen_bits_are_refused_rather_than_cut_off(folder: Path) -> None:
    path = folder / "train" / "dog" / "2.png"
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(path)
    message = refused_by_decoding(Config(root=folder))
    assert str(path) in message
    assert "8 bits" in message


def test_unequal_sizes_name_two_files_and_the_key(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "test" / "eel" / "0.png", seed=0, height=9, width=12)
    message = refused_by_decoding(Config(root=folder))
    assert f"{folder / 'train' / 'cat' / '0.png'} is 8x8" in message
    assert f"{folder / 'test' / 'eel' / '0.png'} is 12x9" in message
    assert "data.resize" in message


def test_too_few_images_to_hold_any_out(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    root = make_folder(tmp_path / "tiny", train=1, test=1)
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        prepare(Config(root=root, val_fraction=0.4))
