"""A sweep of seconds: two cells, two trials each, two seeds, on digits with a narrow MLP, with a thread for each run.

Threads that share a core with other tests wait for each other by spinning.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import run_here

REPOSITORY = Path(__file__).parents[2]
SWEEP = """
name: tiny
base:
  data: {name: digits}
  model: {name: mlp5, width: 16}
  train: {epochs: EPOCHS, batch_size: 100}
  deploy: {bits: [2, 4], scale: recalibrate}
  runtime: {wandb: "off", checkpoint_every_s: 0, threads: 1}
cells:
  - methods: ste
    grid: {target_bit: [2]}
    search: {train.learning_rate: {low: 1e-3, high: 1e-2, log: true}}
  - methods: oscillation
    grid: {target_bit: [2]}
    search: {oscillation.strength: {low: 0.3, high: 30, log: true}}
tune: {trials: 2}
final: {seeds: [0, 1]}
sampler: random
workers: 2
"""
RUNS = 8


def write_sweep(folder: Path, epochs: int = 2, **replaced: str) -> Path:
    """The sweep file in a folder; `replaced` exchanges pieces of its text."""
    text = SWEEP.replace("EPOCHS", str(epochs))
    for old, new in replaced.items():
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def start(sweep: Path, root: Path, *extra: str, **kwargs: Any) -> subprocess.Popen[str]:
    """`python -m harness.launch` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.launch", str(sweep), "--root", str(root), *extra],
        cwd=kwargs.pop("cwd", REPOSITORY),
        env={**os.environ, "WANDB_MODE": "offline", **kwargs.pop("env", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(sweep: Path, root: Path, *extra: str, timeout: float = 240, **kwargs: Any) -> tuple[int, str]:
    """Launch and wait; exit status and everything printed."""
    process = start(sweep, root, *extra, **kwargs)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def here(sweep: Path, root: Path, *extra: str, **kwargs: Any) -> tuple[int, str]:
    """The same in this process: exit status and everything printed."""
    ended = run_here("harness.launch", sweep, "--root", root, *extra, cwd=REPOSITORY, **kwargs)
    return ended.returncode, ended.stdout + ended.stderr


def records(root: Path) -> dict[str, Any]:
    """The finished runs of the sweep, by run id."""
    found = sorted((root / "tiny" / "runs").glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def rows(root: Path) -> dict[str, Any]:
    """The result rows of each run: what must not depend on who ran it and when."""
    return {run_id: record["rows"] for run_id, record in records(root).items()}
