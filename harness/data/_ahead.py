"""Batches of images that are not on the training device: gathered on another thread while earlier ones are used."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

#: Batches that are gathered before they are asked for.
DEPTH = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Sequence[Item], depth: int = DEPTH) -> Generator[Result, None, None]:
    """`work(item)` of each item in turn, up to `depth` of them done on another thread before they are asked for."""
    pool = ThreadPoolExecutor(1)
    coming = iter(items)
    try:
        begun = deque(pool.submit(work, item) for _, item in zip(range(depth), coming))
        while begun:
            found = begun.popleft().result()
            begun.extend(pool.submit(work, item) for _, item in zip(range(1), coming))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


class Ahead:
    """Batches of a split in an order that is known before.

    gather: the images of samples, from their indices, int64 (B,), on the CPU.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self._gather = gather
        self._expected: deque[Tensor] = deque()
        self._gathered: Iterator[Tensor] = iter(())

    def take(self, indices: Tensor) -> Tensor:
        """The images of the next batch that is expected, if these are its very indices; else gathered now."""
        if not self._expected or self._expected[0] is not indices:
            return self._gather(indices.cpu())
        self._expected.popleft()
        return next(self._gathered)

    @contextmanager
    def expecting(self, batches: Sequence[Tensor]) -> Iterator[None]:
        """Within it, these batches come, as the very tensors that are given here."""
        on_cpu = torch.cat([*batches]).cpu().split([len(each) for each in batches]) if batches else ()
        gathered = ahead(self._gather, on_cpu)
        self._expected, self._gathered = deque(batches), gathered
        try:
            yield
        finally:
            self._expected.clear()
            gathered.close()


@contextmanager
def drawn_ahead(data: Any, batches: Sequence[Tensor]) -> Iterator[None]:
    """Within it, training batches of a data set come in this order, so that it may make them ahead."""
    if (order := getattr(data, "ahead", None)) is None:
        yield
        return
    with order.expecting(batches):
        yield
