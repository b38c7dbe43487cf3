"""The README is true: every command in it runs, every snippet works, the method it shows passes conformance."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_here

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
LAUNCHES = [line for line in COMMANDS if "harness.launch" in line]
METHOD = next(block for block in blocks("python") if "class WeightNoise" in block)


def run(command: list[str], cwd: Path = REPOSITORY, **environment: str) -> str:
    """Run a command to its end; fails with what it printed unless it exits 0."""
    answer = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def as_python(line: str) -> list[str]:
    """A `python ...` command line with the interpreter of this test."""
    words = shlex.split(line)
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def test_every_command_is_of_a_kind_that_is_tested_here() -> None:
    modules = tuple(f"python -m harness.{name} " for name in ("launch", "run", "dashboard"))
    kinds = ("make ", *modules, "python analysis/make_figures.py ", "wandb ")
    assert COMMANDS
    assert [line for line in COMMANDS if not line.startswith(kinds)] == []


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    assert "python" in run(["make", "--dry-run", *shlex.split(line)[1:]])


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("wandb ")])
def test_wandb_has_these_commands(line: str) -> None:
    command = shlex.split(line)[1]
    assert f"wandb {command}" in run([sys.executable, "-m", "wandb", command, "--help"])


def test_the_dashboard_is_printed() -> None:
    (line,) = [line for line in COMMANDS if "harness.dashboard" in line]
    assert json.loads(run(as_python(line)))["displayName"] == "oscillation-harness: quickstart"


@pytest.mark.parametrize("line", LAUNCHES)
def test_launch_commands_are_understood(line: str) -> None:
    assert "runs\n" in run([*as_python(line), "--dry-run"])


@pytest.mark.slow
def test_the_sweep_file_runs_and_its_figures_come_out(tmp_path: Path) -> None:
    sweep = tmp_path / "mine.yaml"
    sweep.write_text(blocks("yaml")[0])
    root = str(tmp_path / "runs")
    short = ["--set", "train.epochs=1", "--set", "data.train_fraction=0.2", "--cluster", "debug", "--root", root]
    run([sys.executable, "-m", "harness.launch", str(sweep), *short])
    line = next(line for line in COMMANDS if "make_figures" in line)
    command = [root if word == "runs" else "mine" if word == "quickstart" else word for word in as_python(line)]
    assert "cross_bit_table.{csv,md,tex,json}" in run(command)


def test_one_run_by_hand(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "{methods: ste, target_bit: 2, seed: 1, data: {name: digits}, model: {name: mlp5, width: 16},\n"
        " train: {epochs: 1}, deploy: {scale: recalibrate}}\n"
    )
    line = next(line for line in COMMANDS if "harness.run" in line)
    _, option, module, *arguments = as_python(line)
    ended = run_here(module, *arguments, cwd=tmp_path)
    assert (option, ended.returncode) == ("-m", 0), ended.stderr
    assert "record:" in ended.stdout
    assert (tmp_path / "runs/by-hand/record.json").exists()


def test_the_library_snippet_works() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    names = {
        "model": model,
        "loader": [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(30)],
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-2),
        "loss_function": torch.nn.functional.cross_entropy,
    }
    exec(next(block for block in blocks("python") if "OscillationTracker" in block), names)
    assert names["tracker"].metrics()["osc/frequency"] > 0  # type: ignore[attr-defined]
    for layer in (names["deployed"][0], names["deployed"][2]):  # type: ignore[index]
        assert len(layer.weight.unique()) <= 7


def test_the_method_it_shows_is_one_short_file() -> None:
    assert len(METHOD.splitlines()) < 40


@pytest.mark.slow
def test_dropping_that_file_in_makes_it_usable_and_conformant(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for folder in ("harness", "tests"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    (copy / "harness/methods/weight_noise.py").write_text(METHOD)
    sweep = blocks("yaml")[0].replace("methods: ste", "methods: weight_noise")
    (copy / "noise.yaml").write_text(sweep)
    short = ["--set", "train.epochs=1", "--set", "tune.trials=1", "--set", "final.seeds=[0]", "--cluster", "debug"]
    output = run([sys.executable, "-m", "harness.launch", "noise.yaml", *short], copy, PYTHONPATH=str(copy))
    assert "weight_noise,target_bit=2" in output
    conformance = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance"]
    output = run([*conformance, "-k", "weight_noise"], copy, PYTHONPATH=str(copy))
    assert int(re.search(r"(\d+) passed", output)[1]) >= 4  # type: ignore[index]
