"""Augmentation of a whole batch at once, on whatever device it lives. Pure tensor functions.

On CPUs `cpu.image_batch` does what `crop_and_flip` does while it makes the batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data._config import Augment


def draw(count: int, augment: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crop offsets, int64 (count, 2), (down, right) in 0 .. 2 * crop_padding; mirrored or not, bool (count,).

    Both are drawn whatever is switched on, so that mirroring does not change the crops of a seed.
    """
    device = generator.device
    offsets = torch.randint(0, 2 * augment.crop_padding + 1, (count, 2), generator=generator, device=device)
    mirrored = torch.rand(count, generator=generator, device=device) < 0.5
    return offsets, mirrored if augment.flip else torch.zeros_like(mirrored)


def crop_and_flip(images: Tensor, padding: int, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Pad (B, C, H, W) with zeros, cut (H, W) at each sample's offset, then mirror those asked for.

    One gather: rows and columns of every sample are looked up together (measured faster than slicing views
    of a padded batch, and than torch.gather on flattened images).
    """
    count, channels, height, width = images.shape
    device = images.device
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + offsets[:, 1:]
    rows = torch.arange(height, device=device) + offsets[:, :1]
    samples = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[:, None, None]
    padded = F.pad(images, (padding, padding, padding, padding))
    return padded[samples, channel, rows[:, None, :, None], columns[:, None, None, :]]
