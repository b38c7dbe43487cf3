"""Times of training steps, for the record."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds of training steps; `means` holds their mean in each epoch."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self._seconds, self._steps = 0.0, 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the block as one step."""
        begun = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begun
        self._steps += 1

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Exclude the block, a part of a step, from the time."""
        begun = time.perf_counter()
        yield
        self._seconds -= time.perf_counter() - begun

    def epoch_done(self, device: torch.device) -> None:
        """End an epoch, after waiting for the queued work of a GPU."""
        begun = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if self._steps:
            self.means.append((self._seconds + time.perf_counter() - begun) / self._steps)
        self._seconds, self._steps = 0.0, 0
