"""Samplers and pruners that cannot act with a sweep's trials, epochs or grid: said in one line, and not refused."""

from pathlib import Path
from typing import Any

import pytest
from cli_sweep import GONE, SEARCH, Cli, edited

from harness.cli import idle_settings
from harness.sweep.cells import expand
from harness.sweep.config import SweepConfig, read_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def notes(edits: dict[str, Any]) -> list[str]:
    spec = SweepConfig.model_validate(edited({"tune/trials": 3, "base/train/epochs": 4, **edits}))
    return idle_settings.notes(spec, expand(spec))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"pruner": "median"}, "'median' ends no trial early: its n_startup_trials, 5, is not below tune.trials, 3"),
        ({"pruner": {"name": "percentile", "percentile": 25, "n_startup_trials": 3}}, "n_startup_trials, 3, is not"),
        ({"pruner": "hyperband", "tune/trials": 1}, "tune.trials is 1, and it compares trials of a cell"),
        (
            {"pruner": {"name": "median", "n_startup_trials": 1, "n_warmup_steps": 4}},
            "its n_warmup_steps, 4, is not below train.epochs, 4",
        ),
        ({"pruner": {"name": "hyperband", "min_resource": 9}}, "its min_resource, 9, is not below train.epochs, 4"),
        ({"sampler": "tpe"}, "'tpe' draws every trial at random: its n_startup_trials, 10, is not below"),
        ({"sampler": {"name": "gp", "n_startup_trials": 3}}, "its n_startup_trials, 3, is not below tune.trials, 3"),
        ({"sampler": "nsgaii"}, "its population_size, 50, is not below tune.trials, 3"),
        (
            {"sampler": "grid", SEARCH: {"train.learning_rate": [1e-3, 1e-2]}},
            "sampler 'grid' repeats points: tune.trials is 3, and of grid points 2 cells have fewer, "
            "ste,target_bit=2 2",
        ),
        (
            {"sampler": "grid", "cells/0/grid": {"target_bit": [2]}, SEARCH: {"train.learning_rate": [1e-3]}},
            "of grid points ste,target_bit=2 has 1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_act_is_said_in_one_line(edits: dict[str, Any], said: str) -> None:
    (note,) = notes(edits)
    assert said in note
    assert "\n" not in note


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"sampler": GONE},  # tpe, but nobody asked for it
        {"sampler": {"name": "tpe", "n_startup_trials": 2}},
        {"sampler": {"name": "nsgaii", "population_size": 2}},
        {"sampler": "grid"},  # five points
        {"pruner": "none"},
        {"pruner": {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 3}},
        {"pruner": "hyperband"},
        {"pruner": "successive_halving"},
        {"pruner": {"name": "median", "n_startup_trials": 2, "n_warmup_steps": 4}, "cells/0/set": {"train.epochs": 9}},
    ],
)
def test_what_can_act_is_not_mentioned(edits: dict[str, Any]) -> None:
    assert notes(edits) == []


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_the_sweeps_here_have_no_idle_setting(path: Path) -> None:
    spec = read_sweep(path)
    assert idle_settings.notes(spec, expand(spec)) == []


def test_dry_runs_and_launches_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli(tmp_path)
    path = cli.file(edited({"pruner": "median"}))
    cli.accepted(path)
    note = "note: pruner 'median' ends no trial early"
    assert capsys.readouterr().out.count(note) == 1
    with pytest.raises(AssertionError, match="accepted, with exit status 0"):
        cli.refusal(path)
    assert capsys.readouterr().out.count(note) == 1
