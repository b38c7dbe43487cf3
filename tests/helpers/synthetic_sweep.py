"""Sweeps as the harness writes them, with made-up numbers of the measured kind."""

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.disk_source import load_results
from analysis.grouping import make_groups
from analysis.series import Group
from harness.core.bits import FLOAT, BitWidths
from harness.records import schema

BITS = (2, 3, 4, 8, "float")
#: (method, target) -> mean and sd of test accuracy in % at 2, 3, 4, 8 and float bits.
MEASURED: dict[tuple[str, int | None], tuple[tuple[float, float], ...]] = {
    ("none", None): ((36, 19), (97, 0.5), (97, 0.5), (98, 0.4), (98, 0.4)),
    ("ste", 2): ((97, 0.7), (95, 2.3), (95, 1.5), (95, 1.5), (95, 1.5)),
    ("oscillation", 2): ((95, 1.2), (98, 0.4), (98, 0.4), (98, 0.3), (98, 0.3)),
    ("ste", 3): ((81, 7), (97, 0.6), (97, 0.6), (97, 0.6), (97, 0.6)),
    ("oscillation", 3): ((92, 3), (97.5, 0.5), (98, 0.3), (98, 0.3), (98, 0.3)),
}
_FREQUENCY = {"none": 2e-5, "ste": 8e-3, "oscillation": 2e-3}


def make_row(point: Any, split: str, accuracy: float, **fields: Any) -> dict[str, Any]:
    """A row of a final; accuracy in %."""
    widths = BitWidths.of(point)
    return {
        "phase": "final", "split": split, "deploy": "rtn", "scale": "recalibrate", "bits": widths.weights or FLOAT,
        "accuracy": min(1.0, max(0.0, accuracy / 100)), "loss": 0.1, "n": 397, **schema.fields_of(widths), **fields,
    }  # fmt: skip


def make_run(
    method: str,
    target: Any,
    seed: int,
    accuracies: Sequence[float],
    tag: str = "",
    points: Sequence[Any] = BITS,
    **config: Any,
) -> dict[str, Any]:
    """The record of a final; accuracies in % for `points`. `tag` tells runs apart that have all else in common."""
    rows = [make_row(at, split, value) for split in ("val", "test") for at, value in zip(points, accuracies)]
    watched = 2 if target is None else BitWidths.of(target).weights
    model = config.get("model", {"name": "mlp5", "width": 256})
    run_id = f"{method}-{target}-{seed}-{model['name']}{tag}".replace("+", "_")
    return {
        "run_id": run_id, "phase": "final", "epochs": 40, "best_epoch": 31, "monitor": 0.95, "rows": rows,
        "config": {
            "seed": seed, "target_bit": target, "watch_bit": watched, "methods": [{"name": method}],
            "model": model, "data": {"name": "digits"}, "train": {"epochs": 40, "learning_rate": 1e-3},
            "deploy": {"bits": [2, 3, 4, 8], "scale": "recalibrate"}, **config,
        },
        "resolved": {"precision": "fp32"},
        "provenance": {
            "git": {"sha": "afff6f3", "dirty": False}, "numerics_version": 1, "packages": {"torch": "2.11.0"},
            "device": "cpu", "wall_time_s": 9.1, "peak_memory_bytes": 1, "data_digest": "d1",
        },
    }  # fmt: skip


def make_metrics(method: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A line an epoch: oscillation rises, then falls as training settles."""
    draw = random.Random(f"{method}{seed}")
    level = _FREQUENCY.get(method, 1e-3) * draw.uniform(0.85, 1.2)
    lines = []
    for epoch in range(1, epochs + 1):
        shape = min(1.0, epoch / 4) * (1 - 0.6 * epoch / 40) * draw.uniform(0.93, 1.07)
        value = 0.0 if method == "none" and epoch < 3 else level * shape
        fraction = min(1.0, 12 * value)
        lines.append({"epoch": epoch, "osc/frequency": value, "osc/oscillating_fraction": fraction})
    return lines


class SweepWriter:
    """Collects cells and runs, then writes them; a test changes what it needs before `write`."""

    def __init__(self, root: Path, name: str = "quickstart", seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        self.folder = root / name
        self.seeds = seeds
        self.cells: dict[str, dict[str, Any]] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.metrics: dict[str, list[dict[str, Any]]] = {}
        self.objective = ["target"]
        #: Deployment points, in the order of the numbers.
        self.points: Sequence[Any] = BITS

    def add(self, method: str, target: Any, numbers: Any = None, grid: Any = None, **config: Any) -> str:
        """A finished cell; returns its id."""
        numbers = numbers or MEASURED.get((method, target), MEASURED["oscillation", 2])
        grid = {"target_bit": target} if grid is None else grid
        cell_id = "-".join([method, *(f"{key}={value}" for key, value in grid.items())])
        draw = random.Random(cell_id)
        finals = {}
        for seed in self.seeds:
            accuracies = [draw.gauss(mean, deviation) for mean, deviation in numbers]
            record = make_run(method, target, seed, accuracies, points=self.points, **config)
            self.records[record["run_id"]] = record
            self.metrics[record["run_id"]] = make_metrics(method, seed, 40 - 3 * seed)
            finals[str(seed)] = record["run_id"]
        chosen = {"trial": 3, "value": 0.93, "params": {f"{method}.strength": 2.9}, "run_id": "ab12cd34ef56"}
        self.cells[cell_id] = {
            "id": cell_id, "methods": [method], "grid": grid, "trials": 6, "seeds": list(self.seeds),
            "chosen": chosen, "finals": finals, "failed": [],
        }  # fmt: skip
        return cell_id

    def run_of(self, cell: str, seed: int) -> dict[str, Any]:
        return self.records[self.cells[cell]["finals"][str(seed)]]

    def write(self) -> "SweepWriter":
        for run_id, record in self.records.items():
            folder = self.folder / "runs" / run_id
            folder.mkdir(parents=True, exist_ok=True)
            record["epochs"] = len(self.metrics[run_id])
            (folder / "record.json").write_text(json.dumps(record))
            lines = [json.dumps(line) for line in self.metrics[run_id]]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        self.folder.mkdir(parents=True, exist_ok=True)
        cells = {"sweep": self.folder.name, "objective": self.objective, "cells": list(self.cells.values())}
        (self.folder / "cells.json").write_text(json.dumps(cells))
        return self


def quickstart(root: Path, name: str = "quickstart", **options: Any) -> SweepWriter:
    """The sweep that the measured numbers come from; not yet written."""
    sweep = SweepWriter(root, name, **options)
    for method, target in MEASURED:
        sweep.add(method, target)
    return sweep


def steady(root: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> SweepWriter:
    """Numbers without spread, so that a test can name them."""
    sweep = SweepWriter(root, seeds=seeds)
    sweep.add("ste", 2, [(97, 0), (95, 0), (95, 0), (95, 0), (95, 0)])
    sweep.add("soft_round", 2, [(90, 0), (95, 0), (98, 0), (98, 0), (98, 0)])
    return sweep


def only_group(root: Path, name: str = "quickstart") -> Group:
    """The group of a sweep that has one."""
    (group,) = make_groups(load_results(root, name))
    return group


#: Changes a sweep before it is written.
Spoiler = Callable[[SweepWriter], object]
#: Enough seeds for a clear verdict on all claims.
SIX = tuple(range(6))
#: What is added to the accuracies of a seed, in points: of seeds 0, 1, 2 the sd is 0.1.
WOBBLE = (0.1, -0.1, 0.0, 0.2, -0.2, 0.0)


def add_exactly(
    sweep: SweepWriter,
    method: str,
    target: Any,
    numbers: Mapping[int, Sequence[float]],
    frequency: float = 1e-3,
    **options: Any,
) -> None:
    """A cell with these test accuracies (%, for the sweep's points) by seed.

    `frequency` times 1 + seed / 50 in the mean. The last epoch's frequency is not known.
    """
    cell = sweep.add(method, target, [(0, 0)] * len(sweep.points), **options)
    for seed in sweep.seeds:
        run = sweep.run_of(cell, seed)
        rows = [row for row in run["rows"] if row["split"] == "test"]
        for row, value in zip(rows, numbers[seed], strict=True):
            row["accuracy"] = value / 100
        values = [frequency * (1 + seed / 50) * factor for factor in (0.5, 1.5)]
        sweep.metrics[run["run_id"]] = [
            {"epoch": i, "osc/frequency": value} for i, value in enumerate([*values, math.nan])
        ]


def near(*accuracies: float, seeds: Iterable[int] = SIX, sign: int = 1) -> dict[int, list[float]]:
    """The same accuracies for every seed, but for the wobble."""
    return {seed: [value + sign * WOBBLE[seed] for value in accuracies] for seed in seeds}


def paper(root: Path, seeds: tuple[int, ...] = SIX) -> SweepWriter:
    """A sweep in which all holds that the paper claims; not yet written."""
    sweep = SweepWriter(root, seeds=seeds)
    for bits in (2, 3):
        options = {"grid": {"watch_bit": bits}, "watch_bit": bits, "tag": f"-watch{bits}"}
        add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98), 1e-5, **options)
    add_exactly(sweep, "ste", 2, near(97, 93, 93, 93, 93), 8e-3)
    add_exactly(sweep, "ste", 3, near(60, 97, 95, 95, 95), 8e-3)
    for target, first in ((2, 94), (3, 90)):
        numbers = {seed: [first, 97, 97.5, 97.5, 97.5 + WOBBLE[seed]] for seed in seeds}
        add_exactly(sweep, "oscillation", target, numbers, 2e-3)
    return sweep


def refuted(root: Path) -> SweepWriter:
    """A sweep in which nothing holds at 2 bits, nor what the paper claims of accuracy at 3; not yet written."""
    sweep = SweepWriter(root, seeds=SIX)
    add_exactly(sweep, "none", None, near(20, 90, 97, 98, 98), 5e-3, watch_bit=2)
    add_exactly(sweep, "ste", 2, near(94, 98, 98, 98, 98), 8e-3)
    for bits, rounded in ((2, (97, 95, 95, 95)), (3, (97, 95.5, 97, 97))):
        numbers = {seed: [*found, 97 + WOBBLE[seed]] for seed, found in near(*rounded, sign=-1).items()}
        add_exactly(sweep, "oscillation", bits, numbers, 8e-3)
    add_exactly(sweep, "ste", 3, near(97, 97, 97, 97, 97), 8e-3)
    return sweep


def drop_cells(*cells: str) -> Spoiler:
    return lambda sweep: [sweep.cells.pop(cell) for cell in cells]


def keep_bits(cell: str, *bits: Any) -> Spoiler:
    """Of the cell's results, leave those at these bit-widths."""

    def spoil(sweep: SweepWriter) -> None:
        for seed in sweep.seeds:
            rows = sweep.run_of(cell, seed)["rows"]
            rows[:] = [row for row in rows if row["bits"] in bits]

    return spoil


def drop_frequencies(sweep: SweepWriter, seeds: Iterable[int] = SIX) -> None:
    """Of QAT for 2 bits."""
    for seed in seeds:
        run = sweep.run_of("ste-target_bit=2", seed)["run_id"]
        sweep.metrics[run] = [
            {"epoch": 1, "osc/frequency": None},
            {"epoch": 2, "osc/frequency": math.nan},
            {"epoch": 3},
        ]


def two_strengths(sweep: SweepWriter) -> None:
    """Two cells of the regularizer for 3 bits."""
    del sweep.cells["oscillation-target_bit=3"]
    for strength in (1, 3):
        grid = {"target_bit": 3, "strength": strength}
        add_exactly(sweep, "oscillation", 3, near(90, 97, 97, 97, 97), grid=grid, tag=f"-{strength}")


def measure_elsewhere(sweep: SweepWriter) -> None:
    """QAT for 2 bits was watched at 4, and that for 3 bits deployed in another way."""
    for seed in sweep.seeds:
        sweep.run_of("ste-target_bit=2", seed)["config"]["watch_bit"] = 4
        for row in sweep.run_of("ste-target_bit=3", seed)["rows"]:
            row["deploy"] = "erq"
