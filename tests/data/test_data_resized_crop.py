"""Crops of random size and shape, and images resized by their shorter side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from harness.core.errors import UserError
from harness.data import load_dataset, shape
from harness.data._config import RandomResizedCrop, ShorterSide
from harness.data._decoding import fitted
from harness.data._resized_crop import by_products, draw_boxes, one_by_one
from harness.data.image_folder import Config
from harness.training.components import component

WHOLE: dict[str, Any] = {"scale": [1, 1], "ratio": [1, 1]}


@pytest.mark.parametrize("make", [one_by_one, by_products])
def test_crops_are_those_of_antialiased_interpolation(make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 40, 30), dtype=torch.uint8, generator=generator)
    boxes = [[0, 0, 40, 30], [3, 5, 30, 20], [39, 29, 1, 1], [0, 10, 7, 20], [8, 0, 32, 3], [10, 5, 12, 16]]
    mirrored = torch.tensor([False, True, False, True, True, False])
    found = make(images, torch.tensor(boxes), mirrored, 12, 16)
    for image, (top, left, tall, wide), flip, one in zip(images, boxes, mirrored, found, strict=True):
        crop = image[None, :, top : top + tall, left : left + wide].float()
        wanted = F.interpolate(crop, (12, 16), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(one, wanted.flip(2) if flip else wanted, rtol=0, atol=1e-3)  # of 255, float32 sums
    assert torch.equal(found[5].round(), images[5, :, 10:22, 5:21].float())


@pytest.mark.parametrize(("height", "width"), [(60, 60), (40, 90)])
def test_boxes_lie_inside_with_areas_and_ratios_as_asked(height: int, width: int) -> None:
    how = RandomResizedCrop(scale=(0.25, 0.9), ratio=(0.5, 2))
    boxes = draw_boxes(4000, (height, width), how, torch.Generator().manual_seed(0))
    top, left, tall, wide = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert ((top + tall <= height) & (left + wide <= width)).all()
    share, ratio = tall * wide / (height * width), wide / tall
    assert 0.24 < share.min() < 0.27
    assert 0.8 < share.max() < 0.92
    assert 0.45 < ratio.min() < 0.6
    assert 1.8 < ratio.max() < 2.15
    room = height - tall
    place = (top / room)[room > 9]
    assert abs(place.mean() - 0.5) < 0.03  # deviation of the mean 0.005
    assert place.min() == 0
    assert place.max() == 1


def test_where_no_crop_fits_it_is_the_largest_in_the_middle() -> None:
    how = RandomResizedCrop(scale=(1, 1), ratio=(3 / 4, 4 / 3))
    generator = torch.Generator().manual_seed(0)
    for size, box in {(30, 90): [0, 25, 30, 40], (80, 24): [24, 0, 32, 24]}.items():
        assert draw_boxes(5, size, how, generator).tolist() == [box] * 5


def test_the_shorter_side_is_resized_and_the_middle_kept() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 51, 3), dtype=np.uint8))
    wanted = image.resize((49, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))  # 49.45, 8.5: rounded down, to even
    assert np.array_equal(np.asarray(fitted(image, ShorterSide(shorter_side=32))), np.asarray(wanted))


@pytest.mark.slow
def test_shorter_sides_are_torchvisions() -> None:
    from torchvision.transforms import functional as tv

    rng = np.random.default_rng(0)
    for size in ((50, 33), (33, 51), (32, 32), (20, 91), (64, 32)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        wanted = tv.center_crop(tv.resize(image, 32), [28, 28])
        kept = np.asarray(fitted(image, ShorterSide(shorter_side=32)))
        assert kept.shape == (32, 32, 3)
        assert np.array_equal(kept[2:30, 2:30], np.asarray(wanted))


@pytest.mark.parametrize("residency", ["device", "disk"])
def test_evaluation_sees_the_middle_and_training_crops_of_all(folder: Path, make_image: Any, residency: str) -> None:
    make_image(folder / "train/cat/0.png", seed=0, height=20, width=31)
    settings: dict[str, Any] = {"root": folder, "residency": residency, "resize": {"shorter_side": 12, "crop": 9}}
    data = load_dataset(Config(**settings, normalize="unit"), 0, "cpu")
    assert shape(Config(**settings)) == (data.input_shape, 3) == ((3, 9, 9), 3)
    pixels = data.test.pixels(slice(0, 6))
    assert pixels.shape == (6, 3, 12, 12)
    wanted = pixels[:, :, 2:11, 2:11].float() / 255
    ((inputs, _),) = data.batches(data.test, 6)
    assert torch.equal(inputs, wanted)
    assert torch.equal(data.batch(data.test, torch.arange(6))[0], wanted)
    rows, generator = torch.arange(4), torch.Generator()
    assert torch.equal(data.train_batch(rows, generator)[0], data.batch(data.train, rows)[0])
    flipped = load_dataset(Config(**settings, normalize="unit", augment={"flip": True}), 0, "cpu")
    assert flipped.train_batch(rows, generator)[0].shape == (4, 3, 9, 9)
    crop = {"random_resized_crop": WHOLE}
    whole = load_dataset(Config(**settings, normalize="unit", augment=crop), 0, "cpu")
    stored = data.train.pixels(rows).float()
    resized = F.interpolate(stored, (9, 9), mode="bilinear", antialias=True) / 255
    torch.testing.assert_close(whole.train_batch(rows, generator)[0], resized, rtol=0, atol=1e-5)


def test_batches_follow_the_generator_alone(folder: Path) -> None:
    augment = {"random_resized_crop": {}}  # alone: mirrors are drawn by the same generator
    one, other = (load_dataset(Config(root=folder, augment=augment, residency=r), 0, "cpu") for r in ("device", "disk"))
    rows = torch.arange(5)
    first, again, second = (one.train_batch(rows, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(other.train_batch(rows, torch.Generator().manual_seed(1))[0], first)
    assert first.shape == (5, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"resize": {"shorter_side": 8, "crop": 9}}, "crop: 9 is more than shorter_side: 8"),
        (
            {"resize": {"shorter": 8}},
            r"shorter_side: missing\nshorter: unknown key; did you mean 'shorter_side'",
        ),
        ({"resize": 0}, r"resize: 0: no side \(legal: 1 to 1024 pixels, or a section such as {shorter_side: 256, crop"),
        ({"resize": "8"}, "resize: '8': no side"),
        ({"resize": True}, "resize: True: no side"),
        ({"augment": {"random_resized_crop": {"scale": [0.5, 2]}}}, r"scale: .*ascending, up to 1$"),
        ({"augment": {"random_resized_crop": {"ratio": [2, 1]}}}, r"ratio: .*ascending"),
        ({"augment": {"random_resized_crop": {}, "crop_padding": 1}}, "both crop; set one of them"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        component("data set", {"name": "image_folder", **settings})


def test_new_settings_count_once_they_are_set() -> None:
    plain = Config(resize=8).identity()
    assert plain["resize"] == 8
    assert plain["augment"] == {"crop_padding": 0, "flip": False}
    set_ = Config(resize={"shorter_side": 8}, augment={"random_resized_crop": {}}).identity()
    assert set_["resize"] == {"shorter_side": 8, "crop": None}
    assert set_["augment"]["random_resized_crop"] == {"scale": [0.08, 1.0], "ratio": [0.75, 4 / 3]}
