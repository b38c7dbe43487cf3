"""Crops of random size and shape, made one size: all of a batch at once, on whatever device it lives.

Szegedy et al., Going deeper with convolutions (CVPR 2015), as torchvision's RandomResizedCrop has it: bilinear,
smoothed where a crop becomes smaller, 10 tries for a crop that lies in the image, else the largest one in its middle.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data._config import RandomResizedCrop

TRIES = 10


def draw_boxes(count: int, size: Sequence[int], how: RandomResizedCrop, generator: torch.Generator) -> Tensor:
    """Crops of images of a size (height, width): top, left, height and width, int64 (count, 4)."""
    height, width = size
    device = generator.device
    place = torch.rand(4, TRIES, count, generator=generator, device=device)
    area = height * width * (how.scale[0] + (how.scale[1] - how.scale[0]) * place[0])
    low, high = map(math.log, how.ratio)
    ratio = (low + (high - low) * place[1]).exp()
    tall, wide = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    tries = torch.arange(TRIES, device=device)[:, None]
    first = torch.where(fits, tries, TRIES).min(0).values
    some = first < TRIES
    chosen = first.clamp(max=TRIES - 1)[None]
    whole_tall, whole_wide = _largest(height, width, how.ratio)
    tall = torch.where(some, tall.gather(0, chosen)[0], whole_tall)
    wide = torch.where(some, wide.gather(0, chosen)[0], whole_wide)
    top = _start(place[2].gather(0, chosen)[0], height - tall, some)
    left = _start(place[3].gather(0, chosen)[0], width - wide, some)
    return torch.stack([top, left, tall, wide], dim=1).long()


def _start(place: Tensor, room: Tensor, drawn: Tensor) -> Tensor:
    """Where crops begin: anywhere in 0 .. room, or in the middle where no try was good."""
    return torch.where(drawn, torch.minimum((place * (room + 1)).floor(), room), (room / 2).round())


def _largest(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """Height and width of the largest crop whose ratio is allowed."""
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """float32 (B, C, height, width), pixels from 0 to 255 that are not rounded, from uint8 (B, C, H, W).

    boxes: as `draw_boxes` gives them; mirrored: bool (B,).
    """
    make = one_by_one if images.is_cpu else by_products
    return make(images, boxes, mirrored, height, width)


def one_by_one(images: Tensor, boxes: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """The same where a loop costs nothing; on a CPU seven times as fast as products with mostly zeros."""
    made = torch.empty(len(images), images.shape[1], height, width)
    for out, image, (top, left, tall, wide), flip in zip(made, images, boxes.tolist(), mirrored.tolist(), strict=True):
        crop = image[None, :, top : top + tall, left : left + wide].float()
        crop = F.interpolate(crop, (height, width), mode="bilinear", antialias=True)[0]
        out.copy_(crop.flip(2) if flip else crop)
    return made


def by_products(images: Tensor, boxes: Tensor, mirrored: Tensor, height: int, width: int) -> Tensor:
    """The same where the host must not wait: interpolation along each side as a matrix product."""
    rows = _weights(boxes[:, 0], boxes[:, 2], images.shape[2], height)
    columns = _weights(boxes[:, 1], boxes[:, 3], images.shape[3], width)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ (images.float() @ columns[:, None].mT)


def _weights(start: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """What each pixel of a side of `whole` gives to each of `size`, float32 (B, size, whole); rows sum to 1.

    start, length: the crop, int64 (B,). A triangle around each new pixel's middle, as wide as what it stands for.
    """
    pixels, places = (torch.arange(each, device=start.device) + 0.5 for each in (whole, size))
    scale = length[:, None] / size
    centre = start[:, None] + places * scale
    distance = (pixels - centre[..., None]).abs() / scale.clamp(min=1)[..., None]
    inside = (pixels > start[:, None]) & (pixels < (start + length)[:, None])
    weights = (1 - distance).clamp(min=0) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)
