"""Drawing splits that keep every class's share, and the statistics of a split."""

import torch
from torch import Tensor

from harness.data._raw import Split


def carve(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a stratified draw of `count` samples, and of the rest; both int64 and ascending.

    labels: int64 (N,) on the CPU; 0 <= count < N. Each class gives its exact share, rounded down or up
    (largest remainders first), but never its last sample: where that leaves too few, fewer are drawn.
    """
    total = len(labels)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(total, generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    sizes = torch.bincount(labels)
    quotas = sizes * count // total  # integers throughout: no share is a rounding error off
    remainders = sizes * count % total
    remainders[quotas + 1 >= sizes] = 0
    for label in torch.argsort(remainders, descending=True, stable=True)[: count - int(quotas.sum())]:
        quotas[label] += remainders[label] > 0
    within = torch.arange(total) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    taken = within < torch.repeat_interleave(quotas, sizes)
    return by_class[taken].sort().values, by_class[~taken].sort().values


def channel_statistics(split: Split, max_value: int) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel in [0, 1] units, both float32 (C,), where labels are.

    Counting pixel values is exact, so that the same numbers come wherever images are, and in whatever parts they are
    counted. A channel that never varies gets deviation 1.
    """
    channels = split.images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device=split.images.device)
    for part in split.parts():
        pixels = split.pixels(part)
        counts += torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(channels)])
    shares = counts.cpu().double() / counts.cpu().sum(1, keepdim=True)
    values = torch.arange(counts.shape[1], dtype=torch.float64) / max_value
    mean = (shares * values).sum(1)
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1
    return mean.float().to(split.labels.device), std.float().to(split.labels.device)
