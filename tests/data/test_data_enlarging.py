"""Super-resolution data: crops stay within an image and small and large ones agree; folders; what is refused."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import data
from harness.core.cache import cache_folder
from harness.core.errors import UserError
from harness.data import _decoding, image_pairs, sample_images
from harness.data._enlarging import Crops, EnlargingData, Images
from harness.training.config import component


def made(sizes: list[tuple[int, int]], scale: int = 2, patch: int = 4, pixels: Any = None) -> EnlargingData:
    """Low images of random pixels, or of `pixels(number)`; high ones repeat each pixel."""
    generator = torch.Generator().manual_seed(1)
    low = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    if pixels:
        low = [torch.full_like(each, pixels(number)) for number, each in enumerate(low)]
    high = [each.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for each in low]
    images = Images(tuple(low), tuple(high))
    return EnlargingData(
        Crops(images, 32), images, images, scale, patch, augment=True, shuffle_colours=False, digest="made"
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_of_small_and_large_images_agree_however_they_are_turned(scale: int) -> None:
    found = made([(9, 5), (4, 4), (6, 11)], scale)
    for seed in range(3):
        inputs, targets = found.train_batch(torch.arange(32), torch.Generator().manual_seed(seed))
        assert (inputs.shape, targets.shape) == ((32, 3, 4, 4), (32, 3, 4 * scale, 4 * scale))
        assert (inputs.dtype, inputs.max() <= 1) == (torch.float32, True)
        assert torch.equal(inputs.repeat_interleave(scale, 2).repeat_interleave(scale, 3), targets)


def test_colours_change_places_in_both_images_alike_and_only_where_that_is_asked_for() -> None:
    plain = made([(9, 5)], 2)
    shuffled = replace(plain, shuffle_colours=True)
    orders = set()
    for seed in range(3):
        (low, _), (inputs, targets) = (
            each.train_batch(torch.arange(32), torch.Generator().manual_seed(seed)) for each in (plain, shuffled)
        )
        assert torch.equal(inputs.repeat_interleave(2, 2).repeat_interleave(2, 3), targets)
        assert torch.equal(inputs.sort(dim=1).values, low.sort(dim=1).values)
        for before, after in zip(low, inputs, strict=True):
            orders.add(next(p for p in permutations(range(3)) if torch.equal(before[list(p)], after)))
    assert len(orders) == 6


def test_a_crop_is_of_one_image_and_every_place_is_drawn() -> None:
    found = made([(5, 4), (4, 4), (4, 7)], pixels=lambda number: 51 * number)
    places = (torch.arange(7, dtype=torch.float64) + 0.5) / 7  # 2, 1 and 4 crops
    inputs, _ = found.crops(places, None)
    assert torch.equal(inputs.amax((1, 2, 3)), inputs.amin((1, 2, 3)))
    assert (inputs[:, 0, 0, 0] * 5).round().tolist() == [0, 0, 1, 2, 2, 2, 2]
    (image,) = (one := made([(4, 5)])).val.low
    inputs, _ = one.crops(torch.tensor([0.0, 0.999], dtype=torch.float64), None)
    assert [torch.equal(255 * inputs[at], image[:, :, at : at + 4].float()) for at in range(2)] == [True, True]


def test_there_are_eight_ways_to_turn_a_crop() -> None:
    found = made([(4, 4)])
    inputs, _ = found.crops(torch.zeros(8, dtype=torch.float64), torch.arange(8))
    image = inputs[0]
    wanted = [turned for mirrored in (image, image.flip(2)) for turned in (mirrored.rot90(k, (1, 2)) for k in range(4))]
    assert all(sum(torch.equal(each, one) for one in inputs) == 1 for each in wanted)


def test_crops_depend_on_the_generator_alone() -> None:
    found, indices = made([(9, 9)]), torch.arange(4)
    one, other, third = (
        found.train_batch(indices, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(found.train_batch(indices)[0], found.train_batch(indices.flip(0))[0].flip(0))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_photographs_are_split_before_they_are_made_smaller(scale: int) -> None:
    config = sample_images.Config(scale=scale)
    found = sample_images.load(config, 0, "cpu")
    assert data.shape(config) == (found.input_shape, found.outputs) == ((3, 24, 24), scale)
    china, flower = sample_images._photographs()
    border = 640 * 2 // 3 // scale * scale
    parts = [china[:, :border], china[:, border:], flower]
    for part, images in zip(parts, [found.train.images, found.val, found.test], strict=True):
        (low,), (high,) = images.low, images.high
        height, width = (side // scale for side in part.shape[:2])
        assert np.array_equal(high.permute(1, 2, 0).numpy(), part[: height * scale, : width * scale])
        picture = Image.fromarray(part[: height * scale, : width * scale])
        wanted = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        assert np.array_equal(low.permute(1, 2, 0).numpy(), wanted)
    ((inputs, targets),) = found.batches(found.val, 1024)
    assert (inputs.shape[2] * scale, inputs.shape[3] * scale) == targets.shape[2:]


def picture(path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        picture(tmp_path / f"HR/{number}.png", 40 + number, 36, seed=number)
        picture(tmp_path / f"LR/{number}x2.png", (40 + number) // 2, 18, seed=number)
    picture(tmp_path / "Set5/baby.png", 31, 30)
    return tmp_path


def config(folder: Path, **settings: Any) -> Any:
    given = {"root": str(folder), "train": "HR", "test": "Set5", "patch": 8, "crops": 16, "val_fraction": 0.25}
    return component("data set", {"name": "image_pairs", **given, **settings})


def test_folders_of_images_of_different_sizes(folder: Path) -> None:
    found = data.load_dataset(config(folder), 0, "cpu")
    assert [len(each) for each in (found.train, found.val, found.test)] == [16, 1, 1]  # type: ignore[arg-type]
    assert [tuple(each.shape) for each in found.test.high] == [(3, 30, 30)]  # type: ignore[attr-defined]
    assert data.shape(config(folder)) == ((3, 8, 8), 2)
    again = [data.load_dataset(config(folder), seed, "cpu") for seed in range(8)]
    assert {each.digest for each in again} == {found.digest}
    assert len({tuple(each.val.high[0].flatten().tolist()) for each in again}) > 1  # type: ignore[attr-defined]


def test_small_images_may_be_given(folder: Path) -> None:
    found: Any = data.load_dataset(config(folder, train_low="LR", val="HR", val_low="LR"), 0, "cpu")
    wanted = np.asarray(Image.open(folder / "LR/2x2.png"))
    assert np.array_equal(found.val.low[2].permute(1, 2, 0).numpy(), wanted)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"train": "DIV2K"}, "data.train: no folder"),
    "patch": ({"patch": 30}, r"data.patch: 30: .*0.png is too small: 40x36 pixels, made smaller 20x18"),
    "scale": ({"scale": 5}, "scale"),
    "low of other sizes": (
        {"train_low": "LR", "scale": 3},
        r"0x2.png is 20x18 and .*0.png is 40x36.*no factor of 3",
    ),
    "low of another number": ({"test_low": "LR"}, r"data.test_low: .*LR holds 4 images, and .*Set5 1"),
    "low without high": ({"val_low": "LR"}, "data.val_low: 'LR' has no large images"),
    "no validation": ({"val_fraction": 0.1}, "data.val_fraction: 0.1 of 4 images holds out none"),
    "no root": ({"root": None}, "data.root is not set"),
    "download": ({"download": True}, "data.download"),
    "empty": ({"test": "none"}, "none holds no images"),
    "too small to measure": ({"test": "small"}, "data.test: .*dot.png is too small"),
    "grey": ({"test": "grey"}, "grey.png is grey and .*0.png is in colour"),
    "one pixel high": ({"test": "line"}, "data.scale: .*line.png is too small: 40x1 pixels"),
    "grey small images": ({"train_low": "grey small"}, "0.png is grey and .*0.png is in colour"),
    "damaged": ({"test": "damaged"}, "cannot decode .*x.png"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "none").mkdir()
    picture(folder / "grey/grey.png", 40, 40, "L")
    picture(folder / "small/dot.png", 12, 40)
    picture(folder / "line/line.png", 40, 1)
    for number in range(4):
        picture(folder / f"grey small/{number}.png", 20 + number // 2, 18, "L")
    picture(folder / "damaged/x.png", 40, 40)
    (folder / "damaged/x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=said):
        data.prepare(config(folder, **changes))


@pytest.mark.parametrize("name", ["val", "Valid"])
def test_a_folder_called_like_the_validation_split_is_not_left_unused_unnoticed(folder: Path, name: str) -> None:
    picture(folder / name / "0.png", 40, 40)
    with pytest.raises(UserError, match=f"{name} would not be used, .* set data.val: {name}, or"):
        data.check(config(folder))
    for used in ("val", "test"):
        data.check(config(folder, **{used: name}))


@pytest.mark.parametrize("name", ["patch", "no validation", "too small to measure", "one pixel high"])
def test_what_headers_and_numbers_tell_is_refused_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    picture(folder / "small/dot.png", 12, 40)
    picture(folder / "line/line.png", 40, 1)
    monkeypatch.setattr(Image.Image, "load", None)
    changes, said = BAD[name]
    with pytest.raises(UserError, match=said):
        data.check(config(folder, **changes))


def test_grey_images_alone_are_fine(folder: Path) -> None:
    for name in ("one", "two"):
        picture(folder / f"grey/{name}.png", 40, 40, "L")
    found = image_pairs.load(config(folder, train="grey", test="grey", val="grey"), 0, "cpu")
    assert found.input_shape == (1, 8, 8)


def test_the_layouts_of_div2k_and_set14(tmp_path: Path) -> None:
    for number in range(1, 4):
        picture(tmp_path / f"DIV2K_train_HR/{number:04d}.png", 41, 36, seed=number)
        picture(tmp_path / f"DIV2K_train_LR_bicubic/X2/{number:04d}x2.png", 20, 18, seed=number)
    picture(tmp_path / "Set14/baboon.png", 30, 31)
    picture(tmp_path / "Set14/bridge.png", 30, 30, "L")
    layout = {"train": "DIV2K_train_HR", "train_low": "DIV2K_train_LR_bicubic/X2", "val_fraction": 0.4, "test": "Set14"}
    found: Any = data.load_dataset(config(tmp_path, **layout, colour=True), 0, "cpu")
    assert [len(each) for each in (found.train.images, found.val, found.test)] == [2, 1, 2]
    assert [tuple(each.shape) for each in found.test.high] == [(3, 30, 30), (3, 30, 30)]
    assert torch.equal(found.test.high[1][0], found.test.high[1][2])
    with pytest.raises(UserError, match=r"bridge.png is grey and .*0001.png is in colour.*set data.colour: true"):
        data.load_dataset(config(tmp_path, **layout), 0, "cpu")
    assert config(tmp_path).identity() == config(tmp_path, colour=False).identity()


def test_images_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    own = _decoding.decode_one

    def decode_one(source: Any, name: str, **settings: Any) -> np.ndarray:
        read.append(name)
        return own(source, name, **settings)

    monkeypatch.setattr(_decoding, "decode_one", decode_one)

    def loaded(**settings: Any) -> Any:
        image_pairs._splits.cache_clear()  # as another process would
        read.clear()
        return image_pairs.load(config(folder, **settings), 0, "cpu")

    first = loaded()
    assert len(read) == 5
    again = loaded()
    assert (read, again.digest) == ([], first.digest)
    assert all(map(torch.equal, again.train.images.low + again.test.high, first.train.images.low + first.test.high))
    assert [len(loaded(**settings).digest) for settings in ({"crops": 8}, {"patch": 6})] == [16, 16]
    assert read == []
    assert loaded(scale=3).digest != first.digest
    assert len(read) == 5
    # The same files, divided otherwise: small images are no further split.
    assert loaded(train_low="LR").digest != loaded(val="LR", patch=6).digest
    for path in cache_folder().iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    assert loaded().digest == first.digest
    assert len(read) == 5
