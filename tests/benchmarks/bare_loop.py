"""What a step costs without the harness: images that are floats in memory, forward, backward, fused Adam."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from bench_common import random_split
from torch.nn import functional

from harness.models import build_model
from harness.training.config import component


class BareLoop:
    """One step a call, in the precision of the session that it is compared with. No tracker, no augmentation.

    The network is the product's, channels-last like there; the loss is read, since scripts print it.
    """

    def __init__(
        self,
        model: dict[str, Any],
        batch: int,
        precision: str,
        device: str = "cpu",
        shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        self.model = build_model(component("model", model), shape, 10, seed=0).to(device)
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        split = random_split(4096, shape=shape)
        self.images, self.labels = split.images.float().div_(128).sub_(1).to(device), split.labels.to(device)
        self.autocast = torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0)).to(device)
        full = [indices for indices in order.split(batch) if len(indices) == batch]
        self.batches: Iterator[torch.Tensor] = itertools.cycle(full)

    def __call__(self) -> None:
        indices = next(self.batches)
        with self.autocast:
            logits = self.model(self.images[indices])
        loss = functional.cross_entropy(logits.float(), self.labels[indices])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if not loss.is_cuda:  # a GPU would be waited for
            loss.item()
