"""Batched crops and mirrors against a loop over samples."""

import pytest
import torch
from torch import Tensor

from harness.data import Augment
from harness.data._augment import crop_and_flip, draw

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]


def one_by_one(images: Tensor, padding: int, offsets: Tensor, mirrored: Tensor) -> Tensor:
    results = []
    for image, (down, right), mirror in zip(images, offsets.tolist(), mirrored.tolist(), strict=True):
        channels, height, width = image.shape
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, down : down + height, right : right + width]
        results.append(crop.flip(2) if mirror else crop)
    return torch.stack(results)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [Augment(crop_padding=2, flip=True), Augment(flip=True), Augment(crop_padding=4)])
def test_a_batch_equals_a_loop_over_samples(augment: Augment, channels: int, device: str) -> None:
    images = torch.randint(1, 256, (40, channels, 6, 9), dtype=torch.uint8)
    offsets, mirrored = draw(40, augment, torch.Generator(device).manual_seed(5))
    result = crop_and_flip(images.to(device), augment.crop_padding, offsets, mirrored)
    assert result.dtype == torch.uint8
    assert torch.equal(result.cpu(), one_by_one(images, augment.crop_padding, offsets.cpu(), mirrored.cpu()))
    assert not torch.equal(result.cpu(), images)


@pytest.mark.parametrize("device", DEVICES)
def test_draws_cover_their_range_and_follow_the_generator_alone(device: str) -> None:
    augment = Augment(crop_padding=2, flip=True)
    offsets, mirrored = draw(2000, augment, torch.Generator(device).manual_seed(5))
    assert offsets.cpu().flatten().unique().tolist() == [0, 1, 2, 3, 4]
    assert 800 < int(mirrored.sum()) < 1200  # 1000, deviation 22
    torch.manual_seed(77)
    again, mirrored_again = draw(2000, augment, torch.Generator(device).manual_seed(5))
    assert torch.equal(offsets, again)
    assert torch.equal(mirrored, mirrored_again)
    crops_alone, never = draw(2000, Augment(crop_padding=2), torch.Generator(device).manual_seed(5))
    assert torch.equal(crops_alone, offsets)
    assert not never.any()


def test_batches_of_an_epoch_differ() -> None:
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    augment = Augment(crop_padding=2)
    first, second = (crop_and_flip(images, 2, *draw(30, augment, generator)) for _ in range(2))
    assert not torch.equal(first, second)
