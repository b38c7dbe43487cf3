"""What the benchmarks share: images made in memory, sessions built as the product builds them, steps in turn."""

import inspect
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from harness.data.base import Dataset, Split, order
from harness.training.build import build
from harness.training.config import RunConfig, complete, component
from harness.training.loop import step
from harness.training.precision import multiplies_bf16
from harness.training.session import Session

#: Training images of CIFAR-10 once a tenth validates, and the steps that makes an epoch at a batch of 128.
TRAIN_IMAGES, VAL_IMAGES, TEST_IMAGES = 45_000, 5_000, 10_000
BATCH, STEPS_AN_EPOCH = 128, 352
#: How many of a benchmark's rounds are made: a third in a shortened one (bench.py --short).
ROUNDS_SHARE = 1.0

MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18"},
    "vit_tiny": {"name": "vit_tiny"},
    "mlp5": {"name": "mlp5"},
}
#: The same in a size whose figures mean nothing: to see that the scripts run.
TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18", "width": 4},
    "vit_tiny": {"name": "vit_tiny", "width": 24, "depth": 2},
    "mlp5": {"name": "mlp5", "width": 16},
}


def models(tiny: bool) -> dict[str, dict[str, Any]]:
    """Settings of the models, by name."""
    return TINY if tiny else MODELS


def configure(
    model: Mapping[str, Any],
    method: str = "none",
    batch: int = BATCH,
    augment: bool = True,
    bits: tuple[int | str, ...] = (2, 3, 4, 8),
    device: str = "cpu",
    epochs: int = 100,
    compiled: str = "auto",
    precision: str = "auto",
) -> RunConfig:
    """A run of CIFAR-10's shape, target and watch bit 3; all that is not named here stays at its default."""
    return complete(
        {
            "methods": method,
            "target_bit": None if method == "none" else 3,
            "watch_bit": 3,
            "model": dict(model),
            "data": {"name": "cifar10", "augment": {"crop_padding": 4, "flip": True} if augment else {}},
            "train": {"epochs": epochs, "batch_size": batch, "precision": precision},
            "deploy": {"bits": list(bits), "scale": "recalibrate"},
            "runtime": {"device": device, "wandb": "off", "compile": compiled},
        }
    )


def random_split(count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 32, 32)) -> Split:
    """Random uint8 images (C, H, W) with random labels of 10 classes: only their shape costs time."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (count,), generator=generator))


def make_session(
    config: RunConfig, train: int = 4096, val: int = 512, shape: tuple[int, int, int] = (3, 32, 32)
) -> Session:
    """The product's own session, but for its data: so many random images (C, H, W) in memory."""

    def in_memory(options: Any, seed: int, device: torch.device | str) -> Dataset:
        return Dataset(
            train=random_split(train, seed=1, shape=shape).to(device),
            val=random_split(val, seed=2, shape=shape).to(device),
            test=random_split(1, seed=3, shape=shape).to(device),
            class_names=tuple("0123456789"),
            max_value=255,
            mean=torch.full(shape[:1], 0.5, device=device),
            std=torch.full(shape[:1], 0.25, device=device),
            augment=component("data set", config.data).augment,
            digest="random images",
        )

    with mock.patch("harness.training.build.load_dataset", in_memory):
        return build(config)


class Idle:
    """In a tracker's place where a plain step is wanted."""

    def update(self) -> None:
        """Nothing is counted."""


def untracked(session: Session) -> Session:
    """The session without its tracker."""
    session.trackers = {0: Idle()}  # type: ignore[dict-item]
    return session


class Loop:
    """Steps of a session, one a call, over its training images again and again; every batch is full."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.model.train()
        size = session.config.train.batch_size
        permutation = order(len(session.dataset.train), session.config.seed, 0, session.device)
        full = [indices for indices in permutation.split(size) if len(indices) == size]
        self.batches: Iterator[torch.Tensor] = itertools.cycle(full)

    def __call__(self) -> None:
        step(self.session, next(self.batches))


def clocked(work: Callable[[], object], device: str = "cpu", repeat: int = 1) -> float:
    """Seconds of one call, the mean of `repeat` calls in a row; waits for the device before and after."""
    _wait(device)
    begun = time.perf_counter()
    for _ in range(repeat):
        work()
    _wait(device)
    return (time.perf_counter() - begun) / repeat


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3, device: str = "cpu", repeat: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work, a list entry a round.

    All take turns, so that a machine that slows down slows all alike, and another one begins in each round, so that
    none always runs in the cache that the same other one left.
    """
    names = list(works)
    rounds = min(rounds, max(2, round(ROUNDS_SHARE * rounds)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = clocked(works[name], device, repeat)
            if number >= 0:
                times[name].append(seconds)
    return times


def compared(times: Mapping[str, list[float]], name: str, reference: str, scale: float = 1.0) -> dict[str, Any]:
    """How many times `scale * reference` a work takes: of the medians, and the median of the rounds' own ratios."""
    ratios = sorted(mine / (scale * other) for mine, other in zip(times[name], times[reference], strict=True))
    medians = statistics.median(times[name]), scale * statistics.median(times[reference])
    return {
        "ratio": medians[0] / medians[1],
        "ratio_of_rounds": statistics.median(ratios),
        "ratio_of_fastest": min(times[name]) / (scale * min(times[reference])),
        "rounds_p10_p90": [round(ratios[int(share * (len(ratios) - 1))], 4) for share in (0.1, 0.9)],
        "rounds": len(ratios),
        "ms": 1e3 * medians[0],
        "reference_ms": 1e3 * medians[1],
    }


def settings(session: Session) -> dict[str, Any]:
    """How a session computes, for the details."""
    return {"precision": session.precision, "compiled": session.compiled}


def torch_facts(device: str) -> dict[str, Any]:
    """What torch says of the machine."""
    amx = bool(torch.cpu._is_amx_tile_supported())
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "amx": amx}
    facts["bf16"] = multiplies_bf16()
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return name in inspect.signature(function).parameters
