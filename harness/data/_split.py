"""Drawing splits that keep every class's share, and the statistics of a split."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from harness.core.cache import cached_files, keep
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


def channel_statistics(split: Split, max_value: int, digest: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel in [0, 1] units, both float32 (C,), where labels are.

    Counting pixel values is exact, so that the same numbers come wherever images are, and in whatever parts they are
    counted. A channel that never varies gets deviation 1. digest: of a data set on disk, of which going through the
    split takes so long that counts are kept in the cache.
    """
    counts = _counts(split) if digest is None else _kept_counts(split, digest)
    shares = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(counts.shape[1], dtype=torch.float64) / max_value
    mean = (shares * values).sum(1)
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1
    return mean.float().to(split.labels.device), std.float().to(split.labels.device)


def _counts(split: Split) -> Tensor:
    """How often each value of a pixel is there, int64 (C, 256), on the CPU."""
    parts = split.parts()
    if split.rows is None:
        return _counts_of(split, parts)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(_counts_of, split), (parts[at::threads] for at in range(threads)))
        return torch.stack([*found]).sum(0)


def _counts_of(split: Split, parts: Sequence[slice]) -> Tensor:
    channels = split.images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device=split.images.device)
    for part in parts:
        pixels = split.pixels(part)
        counts += torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(channels)])
    return counts.cpu()


def _kept_counts(split: Split, digest: str) -> Tensor:
    """The same, from the cache where an earlier process counted."""
    assert split.rows is not None, "images on disk"
    which = hashlib.sha256(digest.encode() + split.rows.numpy().tobytes()).hexdigest()[:32]
    name, pixels = f"counts-{which}.json", len(split) * split.images[0].numel()
    for path in cached_files(name):
        with suppress(OSError, ValueError, RuntimeError, TypeError):
            found = torch.tensor(json.loads(path.read_text()), dtype=torch.int64)
            if found.shape == (split.images.shape[1], 256) and found.sum() == pixels:
                return found
    counts = _counts(split)
    text = json.dumps(counts.tolist())
    keep(name, lambda path: path.write_text(text), "pixel values are counted by every run")
    return counts
