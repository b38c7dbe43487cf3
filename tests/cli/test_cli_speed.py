"""What must answer at once never imports torch. Wall times are recorded with the results, not judged here."""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_sweep import BASE, Cli, edited

import harness
from harness.sweep import plan
from harness.sweep.config import read_sweep
from harness.sweep.queue import open_sweep

HEAVY = ("torch", "torch._dynamo", "torchvision", "timm", "optuna", "wandb", "submitit", "sklearn", "pandas", "scipy")

#: Forks for each line of its input: the child runs a module's command, whatever it ends with, then prints the heavy
#: packages that it imported. A fresh interpreter for each of seventy commands would take half a minute in all.
#: The parent has imported what is light, which takes the rest of a start, and says first whether that was heavy.
SERVER = f"""
import json, os, runpy, sys
import pydantic, yaml, harness.launch, harness.sweep.cells, harness.sweep.config, harness.training.config
print(*(name for name in {HEAVY!r} if name in sys.modules), flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        print("ENDED", flush=True)
        continue
    module, *sys.argv[1:] = json.loads(line)
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    except BaseException as error:
        status = repr(error)
    print("IMPORTED", json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]), flush=True)
    os._exit(0)
"""

HARNESS = Path(harness.__file__).parent
Record = Callable[[str, object], None]
Imported = Callable[..., tuple[int, set[str]]]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """Runs the commands of this file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "\n", "what is light imports something heavy"
        yield process
        process.stdin.close()


@pytest.fixture
def imported(server: subprocess.Popen[str], record_property: Record) -> Imported:
    """The exit status of a command and the heavy packages it imported."""

    def run(module: str, *arguments: object) -> tuple[int, set[str]]:
        started = time.monotonic()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps([module, *map(str, arguments)]), file=server.stdin, flush=True)
        said = list(iter(server.stdout.readline, "ENDED\n"))
        record_property("wall_time_s", round(time.monotonic() - started, 3))
        (line,) = (line for line in said if line.startswith("IMPORTED"))
        status, names = json.loads(line.partition(" ")[2])
        return status, set(names)

    return run


def test_the_list_of_commands_imports_nothing_heavy(imported: Imported) -> None:
    assert imported("harness") == (0, set())


@pytest.mark.parametrize("module", ["harness.launch", "harness.run"])
def test_help_imports_nothing_heavy(module: str, imported: Imported) -> None:
    assert imported(module, "--help") == (0, set())


@pytest.mark.parametrize("module", sorted(path.stem for path in HARNESS.glob("*.py") if path.stem[0] != "_"))
def test_help_of_every_command_imports_no_torch(module: str, imported: Imported) -> None:
    status, names = imported(f"harness.{module}", "--help")
    assert status == 0
    assert "torch" not in names


def test_status_of_a_sweep_imports_no_torch(cli: Cli, imported: Imported) -> None:
    plan.top_up(open_sweep(read_sweep(cli.file(BASE)), cli.root))
    status, names = imported("harness.status", cli.root / "small")
    assert status == 0
    assert "torch" not in names


def test_help_of_a_launch_reads_no_schema() -> None:
    code = "import sys, harness.launch; print(*(n for n in ('pydantic', 'yaml') if n in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"


MISTAKES = {
    "YAML": "name: [a\n",
    "duplicate key": "name: a\nname: b\n",
    "unknown key": edited({"sampller": "tpe"}),
    "unknown training setting": edited({"base/train/epohs": 3}),
    "method": edited({"cells/0/methods": "sta"}),
    "model": edited({"base/model/name": "mlp"}),
    "data set": edited({"base/data/name": "digit"}),
    "sampler": edited({"sampler": "tep"}),
    "objective": edited({"objective": "taget"}),
    "bits": edited({"cells/0/grid/target_bit": [1]}),
    "several": edited({"sampller": "tpe", "base/train/epohs": 3, "base/model/widht": 8, "cells/1": {"methods": "sta"}}),
    "range": edited({"cells/0/search": {"train.learning_rate": {"low": 0, "high": 1, "log": True}}}),
}


@pytest.mark.parametrize("content", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_imports_nothing_heavy(cli: Cli, content: object, imported: Imported) -> None:
    file = cli.file(content)  # type: ignore[arg-type]
    assert imported("harness.launch", file, "--root", cli.root) == (2, set())


def test_a_mistake_in_the_file_of_one_run_imports_nothing_heavy(cli: Cli, imported: Imported) -> None:
    for mistake in ({"target_bit": 1}, {"model": {"name": "mlp5", "widht": 8}}, {"methods": ["sta"]}):
        file = cli.file({**BASE["base"], "methods": ["ste"], "target_bit": 2, **mistake})
        assert imported("harness.run", file, "--dir", cli.root) == (2, set())


#: Of the second cell, or of what is checked after cells; the first cell's settings are checked with torch.
LATER_MISTAKES = {
    "method": {"cells/1/methods": "sta"},
    "method of a stack": {"cells/1/methods": ["ste", "oscilation"]},
    "method twice": {"cells/1/methods": ["ste", "ste"]},
    "setting": {"cells/1/set": {"train.epohs": 3}},
    "section of a setting": {"cells/1/set": {"trian.epochs": 3}},
    "value of a setting": {"cells/1/set": {"train.epochs": "many"}},
    "searched setting": {"cells/1/search": {"train.learning_rat": {"low": 1e-3, "high": 1e-2}}},
    "searched method": {"cells/1/search": {"oscilation.strength": {"low": 1, "high": 2}}},
    "searched value": {"cells/1/search": {"train.learning_rate": {"low": -1, "high": 1}}},
    "nothing to search": {"cells/1/search": {}},
    "model in a grid": {"cells/1/grid/model.name": ["mlp5", "mlp"]},
    "model setting in a grid": {"cells/1/grid/model.widht": [3]},
    "data set in a grid": {"cells/1/grid/data.name": ["digit"]},
    "data setting in a grid": {"cells/1/grid/data.normalise": ["unit"]},
    "checkpoint": {"cells/1/set": {"model.init": "nowhere.pt"}},
    "objective": {"objective": "val/acc_w5"},
    "monitored method": {"cells/1/set": {"monitor.deploy": "lsq"}},
    "sampler option": {"sampler": {"name": "tpe", "n_startup_trial": 4}},
    "pruner option": {"pruner": {"name": "median", "n_startup_trial": 4}},
    "workers of a database": {"storage": "sqlite:///queue.db", "workers": 2},
}


@pytest.mark.parametrize("edits", LATER_MISTAKES.values(), ids=LATER_MISTAKES)
def test_a_mistake_is_found_before_a_method_imports_torch(
    cli: Cli, edits: dict[str, object], imported: Imported
) -> None:
    first = {"cells/0/methods": [{"name": "ste", "scale_gradient": "detached"}]}
    second = {"cells/1": {**copy.deepcopy(BASE["cells"][0]), "methods": "lsq"}}
    file = cli.file(edited({**first, **second, **copy.deepcopy(edits)}))
    status, names = imported("harness.launch", file, "--root", cli.root, "--cluster", "slurm")
    assert status == 2
    assert "torch" not in names


@pytest.mark.parametrize("methods", ["ste", ["ste", "oscillation"]], ids=str)
def test_a_dry_run_imports_what_checks_methods_and_no_more(cli: Cli, methods: object, imported: Imported) -> None:
    file = cli.file(edited({"cells/0/methods": methods}))
    status, names = imported("harness.launch", file, "--root", cli.root, "--dry-run")
    assert (status, names) == (0, {"torch", "optuna", "submitit"})


def test_import_harness_imports_next_to_nothing() -> None:
    code = "import sys, harness; print(*(n for n in ('torch', 'pydantic', 'numpy', 'yaml') if n in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"
