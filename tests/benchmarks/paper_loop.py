"""The product's training against what a research script does: the loop of the paper's own notebook.

    python tests/benchmarks/paper_loop.py [--tiny]

The reference: fp32, eager, PIL images through torchvision's transforms in a DataLoader without workers, Adam, the
regularizer by autograd with the scale in the graph, no tracker. The product: default settings, the same augmentation,
regularizer and tracker. Both see the same random images of CIFAR-10's shape. Steps alone: nobody evaluates here. Beside
each row its bound: the loop of bare_loop.py in the product's precision, with nothing but forward, backward and Adam.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bare_loop import BareLoop
from bench_common import (
    BATCH,
    STEPS_AN_EPOCH,
    TRAIN_IMAGES,
    Loop,
    compared,
    configure,
    in_turn,
    make_session,
    models,
    random_split,
    settings,
)
from bench_report import Clock, Row, figure
from naive_oscillation import NaiveRegularizer
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.models import build_model
from harness.training.config import component

BITS = 3
STRENGTH = 1.0
MLP = {"name": "mlp5", "hidden": [256, 128]}


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory as torchvision's CIFAR10 holds them: arrays, made a PIL image when one is drawn."""

    def __init__(self, count: int) -> None:
        split = random_split(count)
        self.arrays, self.labels = split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image: torch.Tensor = self.transform(Image.fromarray(self.arrays[index]))
        return image, self.labels[index]


class PaperLoop:
    """One step a call."""

    def __init__(self, options: dict[str, Any], images: int, batch: int) -> None:
        self.model: nn.Module = build_model(component("model", options), (3, 32, 32), 10, seed=0)
        self.regularizer = NaiveRegularizer(self.model, BITS, STRENGTH)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        loader = DataLoader(Pictures(images), batch, shuffle=True, num_workers=0, drop_last=True)
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))

    def __call__(self) -> None:
        inputs, labels = next(self.batches)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(inputs), labels)
        # The step's context is not used: the loss is of the weights alone.
        penalty: Any = self.regularizer.penalty(None)  # type: ignore[arg-type]
        (loss + penalty).backward()
        self.optimizer.step()
        loss.item()  # scripts print it


def against_it(
    options: dict[str, Any], images: int, batch: int, rounds: int, repeat: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """How many times faster the product steps, how many a bare loop does, and the product's settings."""
    session = make_session(configure(options, "oscillation", batch), train=images)
    loops: dict[str, Callable[[], object]] = {
        "paper": PaperLoop(options, images, batch),
        "product": Loop(session),
        "bare": BareLoop(options, batch, session.precision),
    }
    # The product's first steps compile; the reference's first ones only touch memory.
    times = in_turn(loops, rounds, warmup=2, repeat=repeat)
    return compared(times, "paper", "product"), compared(times, "paper", "bare"), settings(session)


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """ResNet-18 by the step, the MLP by the epoch."""
    assert device == "cpu", "the reference is a loop on the CPU"
    clock, batch, images = Clock(), 8 if tiny else BATCH, 256 if tiny else TRAIN_IMAGES
    what = "ResNet-18 training, regularizer + tracker + augmentation, a step"
    found, bound, how = against_it(models(tiny)["resnet18"], images, batch, 1 if tiny else 5, 1)
    # The goal is stated for CPUs with bf16 units; elsewhere the figure is only reported.
    goal = 4.0 if how["precision"] == "bf16" else None
    rows = [_faster(what, found, how, goal, clock), _faster(f"bound of {what}: a bare loop", bound, how, None, clock)]
    # A quarter of an epoch in all: rounds of 11 steps each, of both in turn.
    rounds, repeat = (1, 2) if tiny else (8, 11)
    found, bound, how = against_it(models(True)["mlp5"] if tiny else MLP, images, batch, rounds, repeat)
    scale = STEPS_AN_EPOCH / 1e3
    details = {
        "measured_steps": rounds * repeat,
        "epoch_s": found["reference_ms"] * scale,
        "reference_epoch_s": found["ms"] * scale,
        "epoch": f"the time of a step, times {STEPS_AN_EPOCH}",
    }
    what = "MLP 3072-256-128-10, regularizer + tracker, an epoch of CIFAR-10's size"
    rows.append(_faster(what, found, how | details, 8.0, clock))
    return [*rows, _faster(f"bound of {what}: a bare loop", bound, how, None, clock)]


def _faster(what: str, found: dict[str, Any], how: dict[str, Any], goal: float | None, clock: Clock) -> Row:
    details = {
        "paper_ms": found["ms"],
        "its_ms": found["reference_ms"],
        **{key: found[key] for key in ("ratio_of_rounds", "ratio_of_fastest", "rounds_p10_p90", "rounds")},
        **how,
    }
    reference = "fp32 eager loop: transforms, DataLoader, autograd"
    return figure(what, reference, found["ratio"], goal=goal, compare=">=", seconds=clock.lap(), **details)


if __name__ == "__main__":
    from bench import run_alone

    run_alone("paper_loop")
