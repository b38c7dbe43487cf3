"""What a second worker brings: `python tests/benchmarks/worker_scaling.py [--epochs 10]`.

Carries out a shortened sweeps/quickstart.yaml on two CPU cores, by the real command and in turn: one worker with the
threads of both cores (what `--workers 1` gives it), two workers with one thread each (`--workers 2`), one worker with
one thread. Wall time of the whole command, start and end included. Beside each row its bound: bare loops of the same
network (two_loops.py), two at once against one. Prints the rows of `make bench` as JSON.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import two_loops

ROOT = Path(__file__).resolve().parents[2]
SWEEP, CELLS, CORES = "sweeps/quickstart.yaml", 7, 2
GOAL = 1.6
#: Seconds a leg may take: several times what it needs.
LIMIT_S = 240
#: Leg: the options of the launch.
LEGS = {
    "one worker": ("--workers", "1"),
    "two workers": ("--workers", "2"),
    "one worker of one thread": ("--workers", "1", "--set", "runtime.threads=1"),
}
WHAT = f"the quickstart sweep, shortened: 2 workers on {CORES} cores"
REFERENCES = {"one worker": f"1 worker with {CORES} threads", "one worker of one thread": "1 worker with 1 thread"}


def sizes(tiny: bool, epochs: int) -> dict[str, str]:
    """What shortens the sweep: two trials a cell and one seed, of so many epochs."""
    return {"train.epochs": "1" if tiny else str(epochs), "tune.trials": "2", "final.seeds": "[0]"}


def launched(folder: Path, options: tuple[str, ...], shortened: dict[str, str]) -> dict[str, float]:
    """Wall seconds of a whole sweep, and what its runs took by themselves. Raises RuntimeError unless all are there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "OMP_"))}
    environment |= {"HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}  # nobody's W&B account, no GPU
    command = [sys.executable, "-m", "harness.launch", SWEEP, "--root", str(folder), *options]
    for key, value in shortened.items():
        command += ["--set", f"{key}={value}"]
    bind = partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:CORES])
    load, begun = os.getloadavg()[0], time.perf_counter()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=bind, **pipes)
    try:
        said = process.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it stops its workers
        said = f"{process.communicate(timeout=60)[0]}\nstopped after {LIMIT_S} s"
    wall_s = time.perf_counter() - begun
    records = [json.loads(path.read_text()) for path in folder.glob("*/runs/*/record.json")]
    if process.returncode != 0 or len(records) != 3 * CELLS:
        raise RuntimeError(f"exit status {process.returncode}, {len(records)} runs, load {load}\n{said}")
    return {
        "wall_s": round(wall_s, 2),
        "runs_s": round(sum(record["provenance"]["wall_time_s"] for record in records), 2),
        "threads": records[0]["provenance"]["threads"],
        "load_before": round(load, 2),
    }


def rows(legs: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The rows of the table from the legs' figures."""
    two = legs["two workers"]
    found = []
    for name, reference in REFERENCES.items():
        one = legs[name]
        found.append(
            {
                "what": WHAT,
                "reference": reference,
                "goal": GOAL,
                "compare": ">=",
                "measured": round(one["wall_s"] / two["wall_s"], 3),
                "unit": "x",
                "detail": {
                    "one": one,
                    "two": two,
                    # Of the runs by themselves: what a sweep so long that its start does not count comes to.
                    "runs_alone": round(one["runs_s"] / (two["runs_s"] / 2), 3),
                },
            }
        )
    return found


def bounds(rates: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of what two bare loops at once bring, from steps a second."""
    return [
        {
            "what": f"bound of {WHAT}: bare loops",
            "reference": reference,
            "goal": None,
            "compare": ">=",
            "measured": round(rates["two workers"] / rates[name], 3),
            "unit": "x",
            "detail": {"steps_per_s": rates},
        }
        for name, reference in REFERENCES.items()
    ]


def measure(tiny: bool = False, epochs: int = 10) -> list[dict[str, Any]]:
    """The rows of the table: how many times faster two workers are than one."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < CORES:
        return []  # one core, or none that can be chosen: nothing to compare
    legs = {}
    # Imports from the disk into the file cache, so that the first leg does not pay for all.
    subprocess.run([sys.executable, "-c", "import torch, sklearn.datasets, optuna, submitit, wandb"], check=True)
    for name, options in LEGS.items():
        with tempfile.TemporaryDirectory() as folder:
            legs[name] = launched(Path(folder), options, sizes(tiny, epochs))
    return rows(legs) + bounds(two_loops.rates(CORES, seconds=0.2 if tiny else 2, rounds=1 if tiny else 2))


def main() -> None:
    """Print the rows as JSON."""
    parser = argparse.ArgumentParser(description="What a second worker brings.")
    parser.add_argument("--epochs", type=int, default=10, help="of each run; quickstart.yaml has 40")
    print(json.dumps(measure(epochs=parser.parse_args().epochs), indent=1))


if __name__ == "__main__":
    main()
