"""Sweeps for a real Slurm: launched as a user would, looked at through what they leave behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PROFILE = REPOSITORY / "slurm" / "test_cluster.yaml"
#: Epochs of the one run: half a minute on one core, so that it can be interrupted in its middle.
EPOCHS = 400
ONE_RUN = f"""
name: one
base:
  data: {{name: digits}}
  model: {{name: mlp5, width: 32}}
  train: {{epochs: {EPOCHS}, batch_size: 32}}
  deploy: {{bits: [2, 4], scale: recalibrate}}
  runtime: {{wandb: "offline", checkpoint_every_s: 5, threads: 1}}
cells:
  - methods: oscillation
    set: {{target_bit: 2}}
tune: {{trials: 0}}
final: {{seeds: [0]}}
"""
#: Eight runs of a few seconds.
MANY_RUNS = """
name: many
base:
  data: {name: digits}
  model: {name: mlp5, width: 16}
  train: {epochs: 10, batch_size: 50}
  deploy: {bits: [2, 4], scale: recalibrate}
  runtime: {wandb: "off", threads: 1}
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
"""


def start(folder: Path, text: str, env: dict[str, str], root: str, *options: str) -> subprocess.Popen[str]:
    """`harness.launch` of a sweep text under `folder/root`."""
    path = folder / "sweep.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "harness.launch", str(path), "--root", str(folder / root), *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A background shell ignores Ctrl-C, and children inherit that: tests that send it would wait in vain.
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )


def launch(folder: Path, text: str, env: dict[str, str], root: str, *options: str) -> tuple[int, str]:
    """The same, to its end: exit status and what was printed."""
    process = start(folder, text, env, root, *options)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def on_slurm(*options: str, profile: Path = PROFILE) -> tuple[str, ...]:
    """The options that send a sweep to the test cluster."""
    return ("--cluster", "slurm", "--profile", str(profile), *options)


def status(sweep: Path, env: dict[str, str]) -> dict[str, Any]:
    """What `harness.status --json` says."""
    command = [sys.executable, "-m", "harness.status", str(sweep), "--json"]
    answer = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def rows(sweep: Path) -> dict[str, Any]:
    """The result rows of each run of a sweep."""
    return {path.parent.name: json.loads(path.read_text())["rows"] for path in sweep.glob("runs/*/record.json")}


def only_run(sweep: Path) -> Path:
    """The directory of the run of a sweep that has one."""
    (found,) = (sweep / "runs").iterdir()
    return found


def epochs(run: Path) -> list[int]:
    """The epochs in a run's metrics, as they stand there."""
    path = run / "metrics.jsonl"
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()] if path.exists() else []


def write_profile(folder: Path, **changes: Any) -> Path:
    """The test cluster's profile with some keys changed."""
    import yaml

    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(PROFILE.read_text()), **changes}))
    return path


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and wait."""
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def without(env: dict[str, str], folder: Path, *programs: str) -> dict[str, str]:
    """An environment whose PATH lacks some programs: links to all others of their folders."""
    kept = folder / "bin"
    kept.mkdir()
    for directory in env["PATH"].split(":"):
        for path in Path(directory).glob("*") if Path(directory).is_dir() else ():
            if path.name not in programs and not (kept / path.name).exists():
                os.symlink(path, kept / path.name)
    return {**env, "PATH": str(kept)}
