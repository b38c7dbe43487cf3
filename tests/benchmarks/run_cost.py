"""What a run costs besides its training: `python tests/benchmarks/run_cost.py [--runs 16]`.

A real worker (cluster/worker.py), in a process of its own, carries out runs that train next to nothing: claim, build,
one epoch of one step, evaluate, record, tell. Cells with the W&B mirror offline and off take turns. The first run of
each cell is left out: it pays for imports. Prints the rows of `make bench` as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.cluster.signals import StopRequest
from harness.cluster.worker import Worker
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep

GOAL_S = 0.3
#: Batch sizes beyond the images there are: one step an epoch, and different runs for the two cells.
MIRRORED, NOT_MIRRORED = 100, 101


class Timed(Worker):
    """A worker that notes when it has told each run's value."""

    def _carry_out(self, sweep: OpenSweep, claim: Claim, stop: StopRequest) -> int:
        finished = super()._carry_out(sweep, claim, stop)
        batch_size = claim.config.train.batch_size
        figures = {"told": time.perf_counter(), "mirrored": batch_size == MIRRORED, "phase": claim.phase}
        print(json.dumps(figures), flush=True)
        return finished


def spec(runs: int) -> SweepConfig:
    """A sweep of so many runs a cell, two of them finals."""
    space = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    modes = ((MIRRORED, "offline"), (NOT_MIRRORED, "off"))
    cells = [
        {"methods": "ste", "set": {"train.batch_size": size, "runtime.wandb": mode}, "search": space}
        for size, mode in modes
    ]
    base = {
        "data": {"name": "digits", "train_fraction": 0.02},
        "model": {"name": "mlp5", "width": 8},
        "target_bit": 2,
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 3], "scale": "recalibrate"},
        "runtime": {"device": "cpu"},
    }
    seeds = [0, 1]
    return SweepConfig.model_validate(
        {
            "name": "nothing",
            "base": base,
            "cells": cells,
            "tune": {"trials": runs - len(seeds)},
            "final": {"seeds": seeds},
            "sampler": "random",
        }
    )


def work(folder: Path) -> None:
    """One worker process; prints when it claimed and told each run."""
    inner = queue.claim

    def timed(sweep: OpenSweep, worker: str) -> Claim | None:
        print(json.dumps({"claiming": time.perf_counter()}), flush=True)
        return inner(sweep, worker)

    queue.claim = timed
    Timed(str(folder), "worker", threads=1)()


def carry_out(folder: Path, runs: int) -> list[dict[str, Any]]:
    """The seconds of each run, in order. Raises RuntimeError when anything that a run leaves behind is missing."""
    sweep = queue.open_sweep(spec(runs), folder)
    plan.top_up(sweep)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(folder), "OMP_NUM_THREADS": "1"}  # nobody's W&B account
    ended = subprocess.run(
        [sys.executable, __file__, "--worker", str(sweep.folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    timed, claiming = [], 0.0
    for line in lines:
        claiming = line.get("claiming", claiming)
        if "told" in line:
            timed.append({**line, "seconds": line["told"] - claiming})
    records = len(list(sweep.folder.glob("runs/*/record.json")))
    mirrors = len(list(sweep.folder.glob("runs/*/wandb/offline-run-*/*.wandb")))
    if (len(timed), records, mirrors, plan.left(sweep)) != (2 * runs, 2 * runs, runs, 0):
        raise RuntimeError(f"{len(timed)} runs, {records} records, {mirrors} mirrors\n{ended.stderr[-2000:]}")
    return timed


def measure(tiny: bool = False, runs: int = 16) -> list[dict[str, Any]]:
    """The row of the table: the median seconds of a run whose mirror is offline."""
    with tempfile.TemporaryDirectory() as folder:
        timed = carry_out(Path(folder), 4 if tiny else runs)
    mirrored, plain = ([run["seconds"] for run in timed if run["mirrored"] is there] for there in (True, False))
    finals = [run["seconds"] for run in timed if run["mirrored"] and run["phase"] == "final"]
    return [
        {
            "what": "claim, record and tell of a run that trains next to nothing, W&B offline",
            "reference": "second and later runs of a worker",
            "goal": GOAL_S,
            "compare": "<=",
            "measured": round(statistics.median(mirrored[1:]), 4),
            "unit": "s",
            "detail": {
                "runs": len(mirrored) - 1,
                "slowest_s": round(max(mirrored[1:]), 4),
                "finals_s": round(statistics.median(finals), 4),
                "wandb_off_s": round(statistics.median(plain[1:]), 4),
                "first_run_s": round(timed[0]["seconds"], 4),
            },
        }
    ]


def main() -> None:
    """Print the row as JSON."""
    parser = argparse.ArgumentParser(description="What a run costs besides its training.")
    parser.add_argument("--runs", type=int, default=16, help="of each of the two cells; at least 4")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    print(json.dumps(measure(runs=options.runs), indent=1))


if __name__ == "__main__":
    main()
