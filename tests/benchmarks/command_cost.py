"""How long the commands that must answer at once take: `python tests/benchmarks/command_cost.py [--repeat 5]`.

Wall time of whole processes, taking turns, the first round left out (it warms the file cache). `import torch` takes
its turn too: a command that needs torch cannot be faster. Prints the rows of `make bench` as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HELP_GOAL_S, DRY_RUN_GOAL_S = 0.3, 3.0  # a dry run checks the settings of methods, whose files import torch
SWEEP = "sweeps/quickstart.yaml"


def commands(nowhere: str) -> dict[str, list[str]]:
    """What is timed, by name. nowhere: a folder of results that is not there."""
    launch = ["-m", "harness.launch"]
    return {
        "help": [*launch, "--help"],
        "dry run": [*launch, SWEEP, "--dry-run", "--root", nowhere],
        "import torch": ["-c", "import torch"],
        "python": ["-c", "pass"],
    }


def clocked(arguments: list[str]) -> float:
    """Seconds of one process. Raises CalledProcessError unless it ends well."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, timeout=120)
    return time.perf_counter() - begun


def imports_torch(arguments: list[str]) -> bool:
    """Whether a command imports torch."""
    command = [sys.executable, "-X", "importtime", *arguments]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    return any(line.rpartition("|")[2].strip() == "torch" for line in ended.stderr.splitlines())


def measure(tiny: bool = False, repeat: int = 5) -> list[dict[str, Any]]:
    """The rows of the table: median seconds of `--help` and of a dry run."""
    repeat = 1 if tiny else repeat
    with tempfile.TemporaryDirectory() as folder:
        works = commands(f"{folder}/runs")
        times: dict[str, list[float]] = {name: [] for name in works}
        for number in range(-1, repeat):
            for name, arguments in works.items():
                seconds = clocked(arguments)
                if number >= 0:
                    times[name].append(seconds)
        needs_torch = {name: imports_torch(works[name]) for name in ("help", "dry run")}
    median = {name: round(statistics.median(values), 4) for name, values in times.items()}
    shown = {"help": ("--help", HELP_GOAL_S), "dry run": (f"{SWEEP} --dry-run", DRY_RUN_GOAL_S)}
    return [
        {
            "what": f"python -m harness.launch {arguments}",
            "reference": "wall time of the process",
            "goal": goal,
            "compare": "<=",
            "measured": median[name],
            "unit": "s",
            "detail": {
                "repeat": repeat,
                "slowest_s": round(max(times[name]), 4),
                "imports_torch": needs_torch[name],
                "import_torch_s": median["import torch"],
                "python_s": median["python"],
            },
        }
        for name, (arguments, goal) in shown.items()
    ]


def main() -> None:
    """Print the rows as JSON."""
    parser = argparse.ArgumentParser(description="How long the commands that must answer at once take.")
    parser.add_argument("--repeat", type=int, default=5)
    print(json.dumps(measure(repeat=parser.parse_args().repeat), indent=1))


if __name__ == "__main__":
    main()
