"""The sweeps that compare every method: nothing is left out, and the one on digits runs, in short, to its ranking."""

import csv
from pathlib import Path

import pytest
from commands import run_here
from tiny_sweep import REPOSITORY, launch

from harness.core import registry
from harness.methods import find
from harness.sweep.cells import expand
from harness.sweep.config import read_sweep

DIGITS, CIFAR = (REPOSITORY / f"sweeps/{name}.yaml" for name in ("methods_digits", "methods_cifar10_mlp"))
#: For batch norm alone, which neither network of these sweeps has; and what came after their committed results.
NOT_THERE = {"bn_reestimation", "pqn", "gptq", "adaround", "erq", "statquant", "ohq", "mpiq", "kivi", "wkvquant", "daq"}


def named(sweep: Path) -> set[str]:
    return {entry["name"] for cell in read_sweep(sweep).cells for entry in cell.methods}


def test_no_method_is_left_out() -> None:
    everything = set(registry.names("method")) - NOT_THERE
    assert named(DIGITS) == everything
    assert named(CIFAR) == {name for name in everything if not find(name).requires}


@pytest.mark.parametrize("sweep", [DIGITS, CIFAR])
def test_every_cell_has_the_same_budget_and_every_stack_all_targets(sweep: Path) -> None:
    spec = read_sweep(sweep)
    assert (spec.tune.trials, spec.final.seeds) == (4, (0, 1, 2))
    targets: dict[tuple[str, str], set[int | None]] = {}
    for cell in expand(spec, checked=False):
        stack = "+".join(entry["name"] for entry in cell.raw["methods"])
        targets.setdefault((stack, cell.raw["model"]["name"]), set()).add(cell.raw["target_bit"])
    assert all(found == ({None} if stack == "none" else {2, 3, 4}) for (stack, _), found in targets.items())


@pytest.mark.slow
def test_the_sweep_on_digits_in_short(tmp_path: Path) -> None:
    short = (
        "base.train.epochs=2",
        "base.train.warmup_epochs=0",
        "tune.trials=1",
        "final.seeds=[0]",
        "base.data.train_fraction=0.2",
        "grid.target_bit=[2, 3]",  # a mean over targets needs several, not all three
        "base.runtime={wandb: 'off'}",
    )
    replaced = [word for key in short for word in ("--set", key)]
    status, output = launch(DIGITS, tmp_path, *replaced, timeout=1500)
    assert status == 0, output
    cells = expand(read_sweep(DIGITS, short))
    assert len(list((tmp_path / "methods_digits/runs").glob("*/record.json"))) == 2 * len(cells)
    done = run_here("analysis.make_figures", "--root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "failed runs" not in done.stdout
    with (tmp_path / "methods_digits/figures/ranking.csv").open() as file:
        lines = list(csv.DictReader(file))
    stacks = {(cell.raw["model"]["name"], "+".join(entry["name"] for entry in cell.raw["methods"])) for cell in cells}
    expected = {(model, "float" if stack == "none" else stack) for model, stack in stacks}
    assert {(line["group"].split()[1], line["method"]) for line in lines} == expected
    assert not any(line["cost"] for line in lines), "one seed tells no cost"
    assert all(line["rank"] and float(line["frequency"]) >= 0 for line in lines)
