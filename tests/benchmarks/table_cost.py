"""What one full paper table costs in device hours, from steps and evaluations measured here and now.

    python tests/benchmarks/table_cost.py [--device cuda] [--tiny]

The table: ResNet-18 and vit_tiny on CIFAR-10; float training, and QAT and the regularizer at targets 2, 3 and 4; 12
tuning trials and 3 final seeds a cell; 100 epochs of 352 steps with an evaluation at six bit-widths and float after
each, and one of the test split after each final run. In the first row nobody stops early and nothing is pruned, so it
is an upper bound; the second has patience and pruning as table_levers.py expects them. Starting, compiling and
checkpoints are not counted.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from bench_common import (
    STEPS_AN_EPOCH,
    TEST_IMAGES,
    VAL_IMAGES,
    Loop,
    configure,
    in_turn,
    make_session,
    models,
    settings,
)
from bench_report import Clock, Row, figure
from table_levers import LIKELY, likely_share

ARCHITECTURES = ("resnet18", "vit_tiny")
#: Cells of each method: float training has no target.
CELLS = {"none": 1, "ste": 3, "oscillation": 3}
BITS = (2, 3, 4, 5, 6, 8)
EPOCHS, TRIALS, SEEDS = 100, 12, 3


def hours(cells: int, step_s: float, image_s: float) -> float:
    """Device hours of a method's cells. image_s: seconds to evaluate one image at all bit-widths."""
    epoch_s = STEPS_AN_EPOCH * step_s + VAL_IMAGES * image_s
    return cells * ((TRIALS + SEEDS) * EPOCHS * epoch_s + SEEDS * TEST_IMAGES * image_s) / 3600


def lines(name: str, device: str, tiny: bool) -> list[dict[str, Any]]:
    """One line a method: what was measured, and what follows from it."""
    batch, val = (8, 16) if tiny else (128, 32 if device == "cpu" else VAL_IMAGES)
    sessions = {
        method: make_session(configure(models(tiny)[name], method, batch, bits=BITS, device=device), val=val)
        for method in CELLS
    }
    steps: dict[str, Callable[[], object]] = {method: Loop(session) for method, session in sessions.items()}
    repeat = 1 if device == "cpu" else 10
    times = in_turn(steps, 1 if tiny else 2, warmup=1, device=device, repeat=repeat)
    plain = sessions["oscillation"]
    evaluation = {"all": lambda: plain.evaluator.rows(plain.model, plain.config.phase, "val")}
    image_s = statistics.median(in_turn(evaluation, 1 if tiny else 2, warmup=1, device=device)["all"]) / val
    table = []
    for method, cells in CELLS.items():
        step_s = statistics.median(times[method])
        table.append(
            {
                "network": name,
                "method": method,
                "cells": cells,
                "runs": cells * (TRIALS + SEEDS),
                "step ms": 1e3 * step_s,
                "evaluation s": VAL_IMAGES * image_s,
                "epoch s": STEPS_AN_EPOCH * step_s + VAL_IMAGES * image_s,
                "hours": hours(cells, step_s, image_s),
                "precision": settings(sessions[method])["precision"],
            }
        )
    return table


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """The hours, with the table that they are the sum of, and what patience and pruning leave of them."""
    clock, table = Clock(), list[dict[str, Any]]()
    for name in ARCHITECTURES:
        table += lines(name, device, tiny)
        torch.compiler.reset()
    total = sum(line["hours"] for line in table)
    kind = "GPU" if device.startswith("cuda") else "CPU"
    what = f"one full paper table, {kind} hours (upper bound)"
    reference = f"{sum(line['runs'] for line in table)} runs of {EPOCHS} epochs"
    row = figure(what, reference, total, unit="h", seconds=clock.lap(), table=table)
    left = sum(line["hours"] * likely_share(line["method"]) for line in table)
    shortened = f"{what.replace(' (upper bound)', '')}, {LIKELY}"
    return [row, figure(shortened, reference, left, unit="h", seconds=clock.lap(), share=left / total)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("table_cost")
