"""What a sweep's queue costs at scale: `python tests/benchmarks/queue_cost.py [--trials 2000] [--workers 64]`.

Real worker processes draw no-op runs from one real storage: claim, tell, nothing in between, which no real sweep
does; so every figure is an upper bound. Prints JSON: whether every trial ran exactly once, the seconds a claim takes
(median, 95th percentile) in the first and the last quarter of the sweep, and how long `status` takes at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.cluster.signals import StopRequest
from harness.cluster.worker import Worker
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep, load_sweep


class NoOp(Worker):
    """A worker whose runs do nothing; prints when each was claimed and how long that took."""

    def perform(self, sweep: OpenSweep, claim: Claim, stop: StopRequest) -> list[float]:
        """The objective from the parameters alone."""
        print(json.dumps({"trial": claim.trial.number, "cell": claim.cell.id, "phase": claim.phase}), flush=True)
        return [0.5]


def spec(name: str, cells: int, trials: int, seeds: int) -> SweepConfig:
    """A sweep of so many cells and trials each."""
    return SweepConfig.model_validate(
        {
            "name": name,
            "base": {
                "data": {"name": "digits"},
                "model": {"name": "mlp5", "width": 8},
                "train": {"epochs": 1},
                "deploy": {"bits": [2, 3], "scale": "recalibrate"},
            },
            "cells": [
                {
                    "methods": "ste",
                    "grid": {"target_bit": [2], "train.batch_size": list(range(8, 8 + cells))},
                    "search": {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
                }
            ],
            "tune": {"trials": trials},
            "final": {"seeds": list(range(seeds))},
            "sampler": "random",
        }
    )


def work(folder: Path, name: str) -> None:
    """One worker process: time its claims."""
    claims: list[tuple[float, float]] = []
    inner = queue.claim

    def timed(sweep: OpenSweep, worker: str) -> Claim | None:
        begun = time.perf_counter()
        found = inner(sweep, worker)
        if found is not None:
            claims.append((time.time(), time.perf_counter() - begun))
        return found

    queue.claim = timed
    NoOp(str(folder), name)()
    print(json.dumps({"claims": claims, "torch": "torch" in sys.modules}), flush=True)


def simulate(folder: Path, trials: int, workers: int) -> dict[str, Any]:
    """Carry the simulation out; its figures."""
    sweep = queue.open_sweep(spec("scale", 1, trials, 1), folder)
    begun = time.perf_counter()
    plan.top_up(sweep)
    created = time.perf_counter() - begun
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, "--worker", f"w{index}", str(sweep.folder)] for index in range(workers)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate()[0] for process in processes]
    took = time.perf_counter() - begun
    lines = [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]
    ran = Counter((line["phase"], line["cell"], line["trial"]) for line in lines if "trial" in line)
    claims = sorted(tuple(claim) for line in lines for claim in line.get("claims", ()))
    quarter = len(claims) // 4
    counts = plan.count(load_sweep(sweep.folder))
    return {
        "workers": workers,
        "trials": trials,
        "exit_statuses": sorted({process.returncode for process in processes}),
        "ran": len(ran),
        "ran_twice": sum(times > 1 for times in ran.values()),
        "left": sum(phase.left for phase in counts.values()),
        "workers_that_imported_torch": sum(line.get("torch", False) for line in lines),
        "seconds_to_create": round(created, 2),
        "seconds_to_draw": round(took, 2),
        "runs_per_second": round(len(claims) / took, 1),
        "claim_s_first_quarter": _spread([cost for _, cost in claims[:quarter]]),
        "claim_s_last_quarter": _spread([cost for _, cost in claims[-quarter:]]),
        "journal_bytes": (sweep.folder / "study.log").stat().st_size,
    }


def _spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"median": round(cuts[9], 4), "p95": round(cuts[18], 4)}


def status_cost(folder: Path, runs: int) -> dict[str, Any]:
    """Seconds of `harness.status --json`, as a command, on a finished sweep of so many runs in 50 cells."""
    sweep = queue.open_sweep(spec("many", 50, runs // 50, 1), folder)
    begun = time.perf_counter()
    plan.top_up(sweep)
    created = time.perf_counter() - begun
    while claim := queue.claim(sweep, "w"):
        queue.tell(claim, [0.5])
    command = [sys.executable, "-m", "harness.status", str(sweep.folder), "--json"]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return {
        "runs": runs,
        "seconds_to_create": round(created, 2),
        "status_s": round(time.perf_counter() - begun, 2),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="What a sweep's queue costs at scale.")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--status-runs", type=int, default=10_000)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.folder, options.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = {"simulation": simulate(Path(folder), options.trials, options.workers)}
        if options.status_runs:
            figures["status"] = status_cost(Path(folder), options.status_runs)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
