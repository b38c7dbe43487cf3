"""A folder of images: what is read, and what is refused."""

import os
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


def test_a_folder_called_like_val_is_not_left_unused_unnoticed(folder: Path) -> None:
    (folder / "validation").mkdir()
    assert f"{folder / 'validation'} would not be used" in refused_by_check(Config(root=folder))


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


@pytest.mark.parametrize("up", ["..", "../..", "more", "../../../../photos/train/cat", "/"])
def test_a_link_that_leads_back_up_is_refused_by_name(folder: Path, up: str) -> None:
    (folder / "train" / "cat" / "more").mkdir()
    link = folder / "train" / "cat" / "more" / "back"
    link.symlink_to("../more" if up == "more" else up)
    assert f"{link} is a link to " in refused_by_check(Config(root=folder))


def test_links_in_circles_are_refused_by_name(folder: Path) -> None:
    (folder / "train" / "cat" / "more").symlink_to("../dog")
    (folder / "train" / "dog" / "more").symlink_to("../cat")
    assert f"{folder / 'train/cat/more/more'} is a link to" in refused_by_check(Config(root=folder))


def test_a_class_that_is_a_link_up_is_refused_by_name(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "fox").symlink_to("..")
    assert f"{folder / 'train/fox'} is a link to {folder}" in refused_by_check(Config(root=folder))


def test_an_image_that_several_links_lead_to_counts_once(folder: Path) -> None:
    before = prepare(Config(root=folder)).digest
    elsewhere = folder.parent / "elsewhere"
    (folder / "train" / "cat").rename(elsewhere)
    (folder / "train" / "cat").mkdir()
    for name in ("one", "two"):
        (folder / "train" / "cat" / name).symlink_to(elsewhere)
    (folder / "train" / "cat" / "three.png").symlink_to(elsewhere / "0.png")
    (folder / "train" / "dog" / "again.png").symlink_to("0.png")
    (folder / "train" / "eel" / "again.png").hardlink_to(folder / "train" / "eel" / "0.png")
    raw = prepare(Config(root=folder))
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert raw.digest == before


@pytest.mark.parametrize("other", ["train/dog/0.png", "test/cat/9.png"])
@pytest.mark.parametrize("hard", [False, True])
def test_an_image_of_two_classes_or_splits_is_refused(folder: Path, other: str, hard: bool) -> None:
    first, second = folder / "train/cat/0.png", folder / other
    second.unlink(missing_ok=True)
    second.hardlink_to(first) if hard else second.symlink_to(first)
    message = refused_by_check(Config(root=folder))
    assert f"{first} and {second} are one file" in message


def test_a_split_that_is_a_link_to_another_is_refused(folder: Path) -> None:
    (folder / "val").symlink_to("train")
    assert "are one file" in refused_by_check(Config(root=folder))


def test_links_to_folders_and_images_elsewhere_are_followed(tmp_path: Path, folder: Path) -> None:
    before = prepare(Config(root=folder)).digest
    linked = tmp_path / "linked"
    (linked / "train" / "cat").mkdir(parents=True)
    (linked / "test").symlink_to(folder / "test")
    for name in ("dog", "eel"):
        (linked / "train" / name).symlink_to(folder / "train" / name)
    for image in (folder / "train" / "cat").iterdir():
        (linked / "train" / "cat" / image.name).symlink_to(image)
    assert prepare(Config(root=linked)).digest == before


def test_what_is_left_out_is_counted(folder: Path) -> None:
    before = prepare(Config(root=folder)).digest
    for inside in ("train/@eaDir", "train/cat/@eaDir", "test/dog/.thumbnails", "test/#recycle", "train/eel/LOST+FOUND"):
        (folder / inside).mkdir()
        (folder / inside / "0.png").write_bytes(b"no image")
    for name in ("train/cat/a.jfif", "train/dog/b.JFIF", "test/eel/c.avif", "test/eel/README"):
        (folder / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="data.root") as said:
        check(Config(root=folder))
    message = str(said[0].message)
    assert "hidden and service folders left out (train/@eaDir, test/#recycle, train/cat/@eaDir, and 2 more)" in message
    assert "passed over by their ending (2 .jfif, 1 without an ending, 1 .avif)" in message
    with pytest.warns(UserWarning, match="left out"):
        assert prepare(Config(root=folder)).digest == before


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_nothing_is_left_out(folder: Path) -> None:
    check(Config(root=folder))


def test_a_class_of_other_files_alone_says_which(folder: Path) -> None:
    for image in (folder / "train" / "cat").iterdir():
        image.rename(image.with_suffix(".avif"))
    message = refused_by_check(Config(root=folder))
    assert "cat holds no images" in message
    assert "4 .avif" in message


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train" / "cat" / "more").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        if path.endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "cat/more cannot be read: Permission denied" in refused_by_check(Config(root=folder))


def test_names_that_are_not_utf8(folder: Path) -> None:
    before = prepare(Config(root=folder)).digest
    for split in ("train", "test"):
        (folder / split / "eel").rename(os.fsdecode(os.fsencode(folder / split) + b"/\xe9el"))
    image = Path(os.fsdecode(os.fsencode(folder) + b"/train/cat/\xff.png"))
    (folder / "train" / "cat" / "3.png").rename(image)
    raw = prepare(Config(root=folder))
    assert raw.digest == before
    assert raw.class_names == ("cat", "dog", r"\xe9el")
    image.write_bytes(b"damaged")
    message = refused_by_decoding(Config(root=folder))
    assert rf"{folder}/train/cat/\xff.png" in message
    message.encode()


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


@pytest.mark.parametrize("mode", ["LAB", "I;16", "F", "I"])
def test_a_mode_that_is_not_read_is_named(folder: Path, mode: str) -> None:
    path = folder / "train" / "dog" / "2.tif"
    Image.new(mode, (8, 8)).save(path)
    message = refused_by_decoding(Config(root=folder))
    assert str(path) in message
    assert mode in message
    assert ("8 bits" in message) == (mode != "LAB")


def test_unequal_sizes_name_two_files_and_the_key(folder: Path, make_image: MakeImage) -> None:
    make_image(folder / "test" / "eel" / "0.png", seed=0, height=9, width=12)
    message = refused_by_decoding(Config(root=folder))
    assert f"{folder / 'train' / 'cat' / '0.png'} is 8x8" in message
    assert f"{folder / 'test' / 'eel' / '0.png'} is 12x9" in message
    assert "data.resize" in message


def test_too_few_images_to_hold_any_out(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    one, two = (make_folder(tmp_path / str(count), train=count, test=1) for count in (1, 2))
    for root, fraction in ((one, 0.4), (two, 0.05)):
        message = refused_by_check(Config(root=root, val_fraction=fraction))
        assert message.startswith(f"data.val_fraction: {fraction} of {3 * int(root.name)} training images holds out no")
    assert prepare(Config(root=two, val_fraction=0.1)).val is None
