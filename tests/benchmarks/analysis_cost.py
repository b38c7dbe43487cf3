"""What `analysis/make_figures.py` costs on a large sweep: made-up numbers, written as runs write theirs.

    python tests/benchmarks/analysis_cost.py [--records 5000] [--epochs 40] [--layers 21]

A fifth of the records are final runs. Prints seconds and the largest memory, against 60 s and 2 GiB.
"""

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.bits import FLOAT
from harness.records import schema
from harness.records.files import write_json
from harness.records.run_directory import RunDirectory
from harness.sweep.config import SweepConfig
from harness.tasks.classification import ACCURACY

REPOSITORY = Path(__file__).resolve().parents[2]
LEAST_RECORDS = 100
BITS = (2, 3, 4, 5, 6, 8)
LIMIT_S, LIMIT_GIB = 60.0, 2.0
#: (method, target) -> mean accuracy in % at BITS and in float.
CELLS: dict[tuple[str, int | None], tuple[float, ...]] = {
    ("none", None): (15, 80, 90, 92, 93, 93, 93),
    **{("ste", bits): (60 + 5 * bits, 88, 90, 91, 91, 91, 91) for bits in (2, 3, 4)},
    **{("lsq", bits): (62 + 5 * bits, 88, 90, 91, 91, 91, 91) for bits in (2, 3, 4)},
    **{("oscillation", bits): (70 + 3 * bits, 90, 92, 92, 93, 93, 93) for bits in (2, 3, 4)},
}


class Shape(NamedTuple):
    """How much is written."""

    trials: int
    seeds: int
    epochs: int
    layers: int


def write_sweep(root: Path, shape: Shape, name: str = "large") -> int:
    """Write a sweep as a launch and its runs do; returns how many records it has."""
    draw = random.Random(0)
    cells = []
    for (method, target), means in CELLS.items():
        cell = method if target is None else f"{method},target_bit={target}"
        finals, chosen = {}, None
        for number in range(shape.trials):
            params = {key: math.exp(draw.uniform(math.log(low), math.log(high))) for key, low, high in _search(method)}
            run_id = write_run(root / name, cell, method, target, means, "tune", number, params, shape, draw)
            chosen = chosen or {"trial": number, "params": params, "value": 0.9, "run_id": run_id}
        for seed in range(shape.seeds):
            params = chosen["params"] if chosen else {}
            finals[str(seed)] = write_run(root / name, cell, method, target, means, "final", seed, params, shape, draw)
        grid = {} if target is None else {"target_bit": target}
        cells.append(
            {"id": cell, "methods": [method], "grid": grid, "seeds": list(range(shape.seeds)), "chosen": chosen,
             "finals": finals, "failed": []}
        )  # fmt: skip
    write_json(root / name / "sweep.json", _launched(name, shape))
    write_json(root / name / "cells.json", {"sweep": name, "objective": ["target"], "cells": cells})
    return len(CELLS) * (shape.trials + shape.seeds)


def _search(method: str) -> list[tuple[str, float, float]]:
    """Searched parameters of a cell, with their ends."""
    own = [("oscillation.strength", 0.1, 10.0)] if method == "oscillation" else []
    return [("train.learning_rate", 1e-4, 1e-2), ("train.weight_decay", 1e-5, 1e-3), *own]


def _launched(name: str, shape: Shape) -> dict[str, Any]:
    """sweep.json, as launching the sweep would write it."""
    cells = [
        {"methods": method, **({"set": {"watch_bit": 2}} if target is None else {"grid": {"target_bit": [target]}}),
         "search": {key: {"low": low, "high": high, "log": True} for key, low, high in _search(method)}}
        for method, target in CELLS
    ]  # fmt: skip
    spec = {
        "name": name, "cells": cells, "tune": {"trials": shape.trials}, "final": {"seeds": list(range(shape.seeds))},
        "base": {"data": {"name": "digits"}, "model": {"name": "resnet18"}, "train": {"epochs": shape.epochs},
                 "deploy": {"bits": list(BITS), "scale": "recalibrate"}},
    }  # fmt: skip
    return SweepConfig.model_validate(spec).model_dump(mode="json")


def write_run(
    folder: Path,
    cell: str,
    method: str,
    target: int | None,
    means: tuple[float, ...],
    phase: str,
    number: int,
    params: dict[str, float],
    shape: Shape,
    draw: random.Random,
) -> str:
    """One run directory; returns the run's id."""
    run_id = f"{draw.getrandbits(48):012x}"
    files = RunDirectory(folder / "runs" / run_id)
    files.path.mkdir(parents=True)
    level = {"none": 1e-4}.get(method, 1e-2) * draw.uniform(0.8, 1.2)
    for epoch in range(1, shape.epochs + 1 if phase == "final" else 1):
        files.append_metrics(_metrics(epoch, level, means, shape.layers, draw))
    rows = [
        {"phase": phase, "split": split, "deploy": "rtn", "scale": "recalibrate", "bits": bits,
         "accuracy": min(1.0, max(0.0, draw.gauss(mean, 1) / 100)), "loss": 0.3, "n": 5000}
        for split in ("val", "test")[: 1 if phase == "tune" else 2]
        for bits, mean in zip((*BITS, FLOAT), means, strict=True)
    ]  # fmt: skip
    config = {
        "seed": number if phase == "final" else 1000, "target_bit": target, "watch_bit": target or 2,
        "methods": [{"name": method}], "model": {"name": "resnet18"}, "data": {"name": "cifar10"},
        "train": {"epochs": shape.epochs}, "deploy": {"bits": list(BITS), "scale": "recalibrate"},
    }  # fmt: skip
    bins = len(schema.THRESHOLD_EDGES) - 1
    record = {
        "run_id": run_id, "phase": phase, "config": config, "resolved": {"precision": "fp32"}, "rows": rows,
        "epochs": shape.epochs, "best_epoch": 1, "monitor": 0.9,
        "provenance": {"git": {"sha": "0000000", "dirty": False}, "numerics_version": 2, "packages": {"torch": "2.11"},
                       "data_digest": "d", "device": "cpu"},
        "threshold_histograms": {
            str(target or 2): {when: [draw.randrange(400, 600) for _ in range(bins)] for when in ("before", "after")}
        },
    }  # fmt: skip
    write_json(files.path / "trials.json", [{"cell": cell, "phase": phase, "trial": number, "params": params}])
    write_json(files.status, {"state": "done"}, flushed=False)
    write_json(files.record, record, flushed=False)
    return run_id


def _metrics(epoch: int, level: float, means: tuple[float, ...], layers: int, draw: random.Random) -> dict[str, Any]:
    """An epoch, with about as many figures as a real one of a network of so many layers."""
    rise = level * (1 - math.exp(-epoch / 5))
    values = {schema.score(ACCURACY, "val", bits): mean / 100 for bits, mean in zip((*BITS, FLOAT), means, strict=True)}
    by_layer = {schema.layer_frequency(f"layer.{i}"): rise * draw.uniform(0.5, 1.5) for i in range(layers)}
    return {
        schema.EPOCH: epoch, schema.TRAIN_LOSS: 1 / epoch, schema.FREQUENCY: rise,
        schema.OSCILLATING_FRACTION: min(1.0, 10 * rise), **values, **by_layer,
    }  # fmt: skip


class Cost(NamedTuple):
    """What one run of make_figures.py took: wall and processor time in seconds, largest memory, what it printed."""

    seconds: float
    cpu_seconds: float
    gibibytes: float
    output: str


def measure(root: Path) -> Cost:
    """Run make_figures.py once on the sweeps of `root`."""
    command = [sys.executable, str(REPOSITORY / "analysis/make_figures.py"), "--root", str(root)]
    begun = time.monotonic()
    with open(root / "output.txt", "w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        output.seek(0)
        text = output.read()
    assert status == 0, text
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, text)


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--layers", type=int, default=21)
    options = parser.parse_args()
    each = max(options.records, LEAST_RECORDS) // len(CELLS)
    shape = Shape(each - each // 5, each // 5, options.epochs, options.layers)
    with tempfile.TemporaryDirectory() as folder:
        records = write_sweep(Path(folder), shape)
        cost = measure(Path(folder))
    print(f"{records} records, {options.epochs} epochs, {options.layers} layers:")
    print(f"  {cost.seconds:.1f} s (goal {LIMIT_S:.0f} s), of the processor {cost.cpu_seconds:.1f} s")
    print(f"  {cost.gibibytes:.2f} GiB (goal {LIMIT_GIB:.0f} GiB)")


if __name__ == "__main__":
    main()
