"""Sweeps as the harness writes them, with made-up numbers of the measured kind."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def make_run(method: str, target: int | None, seed: int, accuracies: Iterable[float], **config: Any) -> dict[str, Any]:
    """The record of a final; accuracies in % for BITS."""
    rows = [
        {"phase": "final", "split": split, "deploy": "rtn", "scale": "recalibrate", "bits": bits,
         "accuracy": min(1.0, max(0.0, value / 100)), "loss": 0.1, "n": 397}
        for split in ("val", "test")
        for bits, value in zip(BITS, accuracies)
    ]  # fmt: skip
    model = config.get("model", {"name": "mlp5", "width": 256})
    run_id = f"{method}-{target}-{seed}-{model['name']}".replace("+", "_")
    return {
        "run_id": run_id, "phase": "final", "epochs": 40, "best_epoch": 31, "monitor": 0.95, "rows": rows,
        "config": {
            "seed": seed, "target_bit": target, "watch_bit": target or 2, "methods": [{"name": method}],
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

    def add(self, method: str, target: int | None, numbers: Any = None, grid: Any = None, **config: Any) -> str:
        """A finished cell; returns its id."""
        numbers = numbers or MEASURED.get((method, target), MEASURED["oscillation", 2])
        grid = {"target_bit": target} if grid is None else grid
        cell_id = "-".join([method, *(f"{key}={value}" for key, value in grid.items())])
        draw = random.Random(cell_id)
        finals = {}
        for seed in self.seeds:
            accuracies = [draw.gauss(mean, deviation) for mean, deviation in numbers]
            record = make_run(method, target, seed, accuracies, **config)
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
            (folder / "record.json").write_text(json.dumps(record))
            lines = [json.dumps(line) for line in self.metrics[run_id]]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        self.folder.mkdir(parents=True, exist_ok=True)
        cells = {"sweep": self.folder.name, "cells": list(self.cells.values())}
        (self.folder / "cells.json").write_text(json.dumps(cells))
        return self


def quickstart(root: Path, name: str = "quickstart", **options: Any) -> SweepWriter:
    """The sweep that the measured numbers come from; not yet written."""
    sweep = SweepWriter(root, name, **options)
    for method, target in MEASURED:
        sweep.add(method, target)
    return sweep
