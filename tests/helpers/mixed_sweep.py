"""Sweeps with targets and deployment points with activations: made-up numbers, with layers, histograms and trials."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthetic_sweep import SweepWriter

from harness.core.bits import BitWidths
from harness.records import schema

POINTS = (2, "w4a4", "w4a8", 4, "w8a8", "float")
METHODS = ("ste", "lsq", "oscillation")
#: What a method loses, in points, when it is rounded to fewer bits than it was trained for; and what it oscillates.
_FRAGILE = {"none": 14.0, "ste": 9.0, "lsq": 7.0, "oscillation": 5.0}
_LEVEL = {"none": 2e-5, "ste": 8e-3, "lsq": 1.2e-2, "oscillation": 2e-3}
_LAYERS = ("net_0", "net_2", "net_4", "net_6", "head")


def mixed(
    root: Path,
    targets: Sequence[Any] = (4, "w4a4"),
    points: Sequence[Any] = POINTS,
    seeds: tuple[int, ...] = (0, 1, 2),
    trials: int = 12,
    name: str = "mixed",
) -> SweepWriter:
    """Float training, and each method at each target; written, with `trials` tuning trials in each cell."""
    sweep = SweepWriter(root, name, seeds)
    sweep.points = points
    watched = sorted({BitWidths.of(target).weights or 2 for target in targets})
    first, *others = watched
    _cell(sweep, "none", None, {"watch_bit": first, "also_watch": others}, trials)
    for target in targets:
        for method in METHODS:
            _cell(sweep, method, target, {}, trials)
    sweep.write()
    for run_id, record in sweep.records.items():
        if record["phase"] == "tune":
            entry = {key: record["labels"][key] for key in ("cell", "phase", "trial", "params")}
            (sweep.folder / "runs" / run_id / "trials.json").write_text(json.dumps([entry]))
    return sweep


def accuracy(method: str, target: Any, point: Any) -> float:
    """In %: falls with every bit of weights or activations below those of the target."""
    wanted, given = BitWidths.of(target or "float"), BitWidths.of(point)
    lost = _FRAGILE[method] * max(0, min(wanted.weights or 5, 5) - (given.weights or 9)) ** 1.5
    lost += 1.2 * _FRAGILE[method] * max(0, (wanted.activations or 7) - (given.activations or 9)) + 0.5 * (
        given.activations is not None
    )
    return max(10.0, 95.5 - lost - 0.2 * list(_FRAGILE).index(method))


def _cell(sweep: SweepWriter, method: str, target: Any, config: dict[str, Any], trials: int) -> None:
    numbers = [(accuracy(method, target, point), 0.5) for point in sweep.points]
    grid = {} if target is None else {"target_bit": target}
    cell = sweep.add(method, target, numbers, grid=grid, **config)
    draw = random.Random(cell)
    for seed in sweep.seeds:
        record = sweep.run_of(cell, seed)
        record["provenance"]["step_ms"] = 2.0 + len(cell) / 20
        bins = len(schema.THRESHOLD_EDGES) - 1
        watched = [record["config"]["watch_bit"], *record["config"].get("also_watch", ())]
        record["threshold_histograms"] = {
            str(bits): {
                "before": [500] * (bins - 1) + [0],
                "after": [round(500 * (1 + (2 if method == "ste" else 0.5) / (1 + i))) for i in range(bins - 1)] + [3],
            }
            for bits in watched
        }
        lines = sweep.metrics[record["run_id"]]
        for line in lines:
            level = _LEVEL[method] * draw.uniform(0.9, 1.1) * (1.3 if isinstance(target, str) else 1)
            own = {schema.FREQUENCY: level, schema.OSCILLATING_FRACTION: min(1.0, 12 * level)}
            line |= own | {
                schema.watched_at(key, bits): value / 2 for key, value in own.items() for bits in watched[1:]
            }
            line |= {f"{schema.LAYER_PREFIX}{layer}": level * draw.uniform(0.3, 2) for layer in _LAYERS}
    _trials(sweep, cell, draw, trials)


def _trials(sweep: SweepWriter, cell: str, draw: random.Random, trials: int) -> None:
    """Tuning trials of a cell; the fourth, if there is one, is chosen."""
    final, method = sweep.run_of(cell, sweep.seeds[0]), sweep.cells[cell]["methods"][0]
    for number in range(trials):
        params = {f"{method}.strength": 10 ** draw.uniform(-1, 1), "train.learning_rate": 10 ** draw.uniform(-4, -2)}
        run_id = f"{final['run_id']}-trial{number}"
        shift = draw.gauss(0, 1)
        rows = [
            row | {"phase": "tune", "accuracy": max(0.0, row["accuracy"] - abs(shift + draw.gauss(0, 0.5)) / 100)}
            for row in final["rows"]
            if row["split"] == "val"
        ]
        labels = {"cell": cell, "phase": "tune", "trial": number, "params": params}
        record = final | {"run_id": run_id, "phase": "tune", "rows": rows, "labels": labels}
        sweep.records[run_id], sweep.metrics[run_id] = record, [{"epoch": 1}]
    if trials > 3:
        sweep.cells[cell]["chosen"] |= {"trial": 3, "run_id": f"{final['run_id']}-trial3"}
