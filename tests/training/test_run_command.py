"""`python -m harness.run` in a process of its own, without wandb, optuna or submitit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_here

CONFIG = """
methods: oscillation
target_bit: 3
model: {name: mlp5, width: 16}
data: {name: digits, train_fraction: 0.1}
train: {epochs: 2, batch_size: 40}
deploy: {bits: [2, 8], scale: recalibrate}
runtime: {device: cpu, threads: 1, wandb: auto}
"""


def command(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    blocked = tmp_path / "blocked"
    blocked.mkdir(exist_ok=True)
    for package in ("wandb", "optuna", "submitit"):
        (blocked / f"{package}.py").write_text(f"raise ImportError('{package} is not here')\n")
    (tmp_path / "config.yaml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    arguments = [sys.executable, "-m", "harness.run", str(tmp_path / "config.yaml"), "--dir", str(tmp_path / "run")]
    return subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_needs_no_service(tmp_path: Path) -> None:
    done = command(tmp_path, CONFIG)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert len(record["rows"]) == 8
    assert done.stdout.count("epoch ") == 2
    assert done.stdout.count("accuracy") == 8
    assert str(tmp_path / "run/record.json") in done.stdout
    again = run_here("harness.run", tmp_path / "run/config.json", "--dir", tmp_path / "run")
    assert again.returncode == 0, "what a run leaves behind names the same run"
    assert "epoch " not in again.stdout
    (tmp_path / "other.yaml").write_text(CONFIG.replace("width: 16", "width: 17"))
    other = run_here("harness.run", tmp_path / "other.yaml", "--dir", tmp_path / "run")
    assert other.returncode == 2
    assert "directory of its own" in other.stderr
    assert "Traceback" not in other.stderr


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    slip = command(tmp_path, CONFIG.replace("oscillation", "oscilation"))
    assert slip.returncode == 2
    assert "did you mean 'oscillation'" in slip.stderr
    assert "Traceback" not in slip.stderr
    sweep = command(tmp_path, CONFIG + "cells: []\n")
    assert "has cells, so it is a sweep: python -m harness.launch carries it out" in sweep.stderr
    assert not (tmp_path / "run").exists()
