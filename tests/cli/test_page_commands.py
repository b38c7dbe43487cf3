"""Pages are true: every command in them runs, options exist, snippets work, the method that they show conforms.

Commands run on a copy of a small finished sweep (tests/cluster/previous_version) in place of the sweep that a page
names, long ones as a dry run. What installs or starts services is checked for its parts; tests/slurm runs it.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import pytest
from commands import run_here
from pages import CHANGELOG, COMPONENTS, METHOD, REPOSITORY, WRITTEN, blocks, codes, commands, name_of, write_files

FINISHED = REPOSITORY / "tests/cluster/previous_version"
RUN = "32bb5f258e16"  # a final run of it
README = REPOSITORY / "README.md"
COMMANDS = sorted({line for page in WRITTEN for line in commands(page)})
#: Commands of the README's table, without what is optional.
TABLE = [re.sub(r" \[.*?\]", "", row) for row in re.findall(r"^\| `(python .*?)` \|", README.read_text(), re.MULTILINE)]
#: The sweep of a page in seconds; `make demo` runs one with W&B.
SHORT = ["--cluster", "debug", "--set", "train.epochs=1", "--set", "data.train_fraction=0.2", "--set", "tune.trials=1"]
SHORT += ["--set", "runtime.threads=1", "--set", "runtime.wandb='off'"]
BY_HAND = """{methods: ste, target_bit: 2, seed: 1, data: {name: digits}, model: {name: mlp5, width: 16},
 train: {epochs: 1}, deploy: {scale: recalibrate}, runtime: {device: cpu, wandb: "off"}}
"""


def run(command: list[str], cwd: Path = REPOSITORY, **environment: str) -> str:
    """Run a command to its end; fails with what it printed unless it exits 0."""
    answer = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working directory with what the pages' commands find: the repository's folders, a finished sweep, files."""
    for name in ("sweeps", "slurm", "analysis"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copytree(FINISHED, tmp_path / "runs")
    (tmp_path / "runs/small.yaml").rename(tmp_path / "small.yaml")
    for record in (tmp_path / "runs").rglob("record.json"):  # two threads that share a core wait by spinning
        record.write_text(record.read_text().replace('"threads": 2', '"threads": 1'))
    (tmp_path / f"runs/small/runs/{RUN}/log.txt").write_text("epoch 1\n")
    (tmp_path / "mine.yaml").write_text(blocks(README, "yaml")[0])
    (tmp_path / "run.yaml").write_text(BY_HAND)
    write_files(COMPONENTS, tmp_path)
    return tmp_path


def on_the_finished_sweep(line: str) -> list[str]:
    """The words of a command, the finished sweep and one of its runs in place of what the page names."""
    for words, there in (
        ("SWEEP.yaml", "small.yaml"),
        ("RUN.yaml", "run.yaml"),
        ("/shared/runs", "runs"),
        ("runs/SWEEP", "runs/small"),
        ("archives/SWEEP", "archives/small"),
        ("runs/quickstart", "runs/small"),
        ("--sweep quickstart", "--sweep small"),
        ("--sweep mine", "--sweep small"),
        ("WHERE", "runs/small"),
        ("FILE.py", "data/rings.py"),
        ("METHOD.py", "methods/pull.py"),
        ("--root DIR", "--root runs"),
        ("RUN", RUN),
    ):
        line = re.sub(rf"(?<![\w/]){re.escape(words)}(?![\w.])", there, line)
    return shlex.split(line)


@pytest.mark.parametrize("line", [*COMMANDS, *(line for line in TABLE if line not in COMMANDS)])
def test_every_command_runs(line: str, here: Path) -> None:
    words = on_the_finished_sweep(line)
    if line.startswith("python -m harness."):
        module(words[2], words[3:], here)
    elif line.startswith("python analysis/make_figures.py "):
        figures(words[2:], here)
    else:
        parts(line, words)


def module(name: str, arguments: list[str], here: Path) -> None:
    """Run a command of the harness; what launches a sweep as a dry run, `repeat` on digits rather than on CIFAR-10."""
    verb = name.removeprefix("harness.")
    if verb in ("launch", "bench") and "--dry-run" not in arguments:
        arguments = [*arguments, "--dry-run"]
    if verb == "repeat":
        arguments = ["runs" if word == "analysis/results" else word for word in arguments]
    if verb == "export":
        arguments = ["2" if word in ("w2", "w4") else word for word in arguments]
    if verb == "archive" and arguments[0] == "unpack":
        if not (here / arguments[1]).exists():
            module(name, ["pack", "runs/small", "--to", "archives"], here)
        arguments = [*arguments[:-1], "unpacked"]  # `runs` holds the sweep already
    ended = run_here(name, *arguments, cwd=here)
    # Another processor adds up in another order: a repeated run may differ, and the command says so.
    assert ended.returncode in ((0, 1) if verb == "repeat" else (0,)), ended.stdout + ended.stderr
    made = {
        "launch": "runs\n",
        "status": "complete",
        "logs": "done",
        "cancel": "no worker was running",
        "repeat": "row",
    }
    made |= {"retry": "no run failed", "run": "record:", "evaluate": "rows added", "archive": " runs"}
    made |= {"dashboard": '"displayName": "oscillation-harness: ', "config": "default", "methods": "oscillation"}
    made |= {
        "export": "% in the record",
        "conform": "4 of 4 checks passed",
        "bench": "comparable with the records in",
    }
    assert made[verb] in ended.stdout


def figures(arguments: list[str], here: Path) -> None:
    """Draw one figure; of the committed results those of one sweep, beside them."""
    if "analysis/results" in arguments:
        arguments = [*arguments, "--sweep", "quickstart", "--out", "drawn"]
    ended = run_here("analysis.make_figures", *arguments, "--figure", "accuracy_over_bits", cwd=here)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = here / ("drawn" if "drawn" in arguments else "runs/small/figures")
    assert (folder / "accuracy_over_bits.png").exists()


def parts(line: str, words: list[str]) -> None:
    """What installs, starts services or takes minutes: files, targets, packages and extras are there."""
    script = (REPOSITORY / "slurm/test_cluster.sh").read_text(encoding="utf-8")
    if words[0] == "make":
        assert ".venv/bin/" in run(["make", "--dry-run", *words[1:]])
    elif words[0] == "wandb":
        from click.testing import CliRunner
        from wandb.cli.cli import cli

        assert f" {words[1]} " in CliRunner().invoke(cli, [words[1], "--help"], catch_exceptions=False).output
    elif words[:3] == ["sudo", "apt-get", "install"]:
        assert set(words[3:]) <= set(re.findall(r"[\w-]+", (REPOSITORY / ".ci/run").read_text()))
    elif words[:2] == ["pip", "install"]:
        (extra,) = re.findall(r"\.\[(\w+)\]", line)
        assert extra in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all((REPOSITORY / after).exists() for option, after in pairwise(words) if option == "-c")
    elif words[0] in ("slurm/test_cluster.sh", "eval"):
        (verb,) = re.findall(r"slurm/test_cluster\.sh (\w+)", line)
        assert re.search(rf"^ *{verb}\)", script, re.MULTILINE)
        assert os.access(REPOSITORY / "slurm/test_cluster.sh", os.X_OK)
    elif words[:2] == ["git", "status"]:
        assert (REPOSITORY / words[-1]).exists()
    else:
        assert (words, os.access(REPOSITORY / ".ci/run", os.X_OK)) == ([".ci/run"], True)


@functools.cache
def help_of(module: str) -> str:
    ended = run_here(module, "--help")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("page", [page for page in WRITTEN if page != CHANGELOG], ids=name_of)
def test_options_exist(page: Path) -> None:
    """Of commands in blocks, sentences and tables: their `--help` has them."""
    for line in [*commands(page), *codes(page)]:
        if found := re.match(r"python (?:-m (harness\.\w+)|analysis/(make_figures)\.py)", line):
            said = help_of(found[1] or f"analysis.{found[2]}")
            assert [option for option in re.findall(r"--[\w-]+", line) if f"{option} " not in f"{said} "] == []


def test_the_readme_lists_what_there_is_and_how_to_see_all_of_it() -> None:
    there = {path.stem for path in (REPOSITORY / "harness").glob("*.py")} - {"__init__", "__main__"} | {"methods"}
    left_out = {"run", "retry", "dashboard", "methods"}
    assert {line.split()[2] for line in TABLE if "-m" in line} == {f"harness.{name}" for name in there - left_out}
    assert "`python -m harness` lists these and the others" in README.read_text()


@pytest.mark.parametrize("page", ["README.md", "sweeps/README.md"])
def test_example_sweeps_are_understood(page: str, here: Path) -> None:
    (here / "example.yaml").write_text(blocks(REPOSITORY / page, "yaml")[0])
    ended = run_here("harness.launch", "example.yaml", "--dry-run", cwd=here)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_the_sweep_file_runs_and_its_figures_come_out(here: Path) -> None:
    line = next(line for line in COMMANDS if "harness.launch mine.yaml" in line)
    words = [word for word in line.split()[3:] if word not in ("--cluster", "local")]
    launched = run_here("harness.launch", *words, *SHORT, cwd=here)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    line = next(line for line in COMMANDS if "make_figures.py" in line and "mine" in line)
    drawn = run_here("analysis.make_figures", *line.split()[2:], cwd=here)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert ".{csv,md,tex,json}: cross_bit_table," in drawn.stdout


def test_the_library_snippet_works() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    names = {
        "model": model,
        "loader": [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(30)],
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-2),
        "loss_function": torch.nn.functional.cross_entropy,
    }
    exec(next(block for block in blocks(README, "python") if "OscillationTracker" in block), names)
    assert names["tracker"].metrics()["osc/frequency"] > 0  # type: ignore[attr-defined]
    for layer in (names["deployed"][0], names["deployed"][2]):  # type: ignore[index]
        assert len(layer.weight.unique()) <= 7


def test_the_line_for_qat_works() -> None:
    import torch

    from harness import LSQQuantizer, attach, round_to_nearest

    line = next(code for code in codes(README) if code.startswith("attach("))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8))
    exec(line, {"attach": attach, "LSQQuantizer": LSQQuantizer, "model": model})
    assert isinstance(model[0].weight_quantizer, LSQQuantizer)
    trained = model[0].quantized_weight().detach()
    assert 2 < len(trained.unique()) <= 7, "not all zeros"
    assert torch.equal(round_to_nearest(model)[0].weight, trained)  # type: ignore[index]
    line = next(code for code in codes(README) if code.startswith("attach(model, weight_quantizer={"))
    model = torch.nn.Sequential(OrderedDict(body=torch.nn.Linear(4, 8), head=torch.nn.Linear(8, 2)))
    exec(line, {"attach": attach, "LSQQuantizer": LSQQuantizer, "model": model})
    assert [layer.weight_quantizer.bits for layer in model] == [4, 8]


def test_the_method_that_a_page_shows_is_one_short_file() -> None:
    assert len(METHOD.splitlines()) < 40


@pytest.mark.slow
def test_dropping_that_file_in_makes_it_usable(tmp_path: Path) -> None:
    """And conformant: tests/conformance/test_state_and_pickup.py runs the suite on it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "harness", tmp_path / "harness", ignore=ignored)
    (tmp_path / "harness/methods/weight_noise.py").write_text(METHOD)
    sweep = blocks(README, "yaml")[0].replace("methods: ste", "methods: weight_noise")
    (tmp_path / "noise.yaml").write_text(sweep)
    command = [sys.executable, "-m", "harness.launch", "noise.yaml", *SHORT, "--set", "final.seeds=[0]"]
    assert "weight_noise,target_bit=2" in run(command, tmp_path, PYTHONPATH=str(tmp_path))
