"""A real sweep whose runs are mirrored to the stand-in server, read from there and from disk: the same numbers."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from wandb_reading import ReadableServer

from analysis import make_figures
from analysis.disk_source import load_results as load_from_disk
from analysis.figures import find_figures
from analysis.frames import rows_frame, trials_frame
from analysis.grouping import make_groups
from analysis.results import SweepResults
from analysis.series import summarize
from analysis.wandb_source import load_results as load_from_wandb
from harness import launch
from harness.core.errors import UserError

RATE = {"low": 1e-4, "high": 1e-2, "log": True}
SWEEP: dict[str, Any] = {
    "name": "mirrored",
    "base": {
        "data": {"name": "digits", "train_fraction": 0.1},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 2, "batch_size": 40},
        "deploy": {"bits": [2, 3, "w3a8"], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "online"},
    },
    "cells": [
        {"methods": "none", "set": {"watch_bit": 2}, "search": {"train.learning_rate": RATE}},
        {"methods": "oscillation", "grid": {"target_bit": [2]}, "search": {"oscillation.strength": RATE}},
    ],
    "tune": {"trials": 3},
    "final": {"seeds": [0, 1]},
    "sampler": "random",
}


pytestmark = pytest.mark.slow  # a sweep is mirrored to a server first


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ReadableServer]]:
    """The root of a finished sweep, and the server that its runs were mirrored to."""
    import wandb

    folder = tmp_path_factory.mktemp("mirrored")
    (folder / "mirrored.yaml").write_text(yaml.safe_dump(SWEEP))
    with pytest.MonkeyPatch.context() as patch, ReadableServer() as server:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder / "home"))
        for name, value in server.environment().items():
            patch.setenv(name, value)
        wandb.teardown()
        root = folder / "runs"
        assert launch.main([str(folder / "mirrored.yaml"), "--cluster", "debug", "--root", str(root)]) == 0
        yield root, server
        wandb.teardown()


@pytest.fixture
def sweeps(served: tuple[Path, ReadableServer]) -> tuple[SweepResults, SweepResults]:
    """The sweep from disk, and from W&B."""
    return load_from_disk(served[0], "mirrored"), load_from_wandb(None, "oscillation-harness", "mirrored")


def in_order(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return frame.sort_values(list(columns)).reset_index(drop=True)


def test_the_same_rows_and_trials(sweeps: tuple[SweepResults, SweepResults]) -> None:
    rows, trials = [], []
    for sweep in sweeps:
        (group,) = make_groups(sweep)
        rows.append(in_order(rows_frame(sweep), "run_id", "split", "bits", "activations"))
        trials.append(in_order(trials_frame(group), "cell", "trial"))
    assert len(rows[0]) == 2 * (3 * 4 + 2 * 8)
    assert rows[0]["activations"].value_counts().to_dict() == {8: 2 * (3 + 2 * 2)}
    assert "w3a8" in trials[0]
    pd.testing.assert_frame_equal(*rows)
    pd.testing.assert_frame_equal(*trials)


def test_the_same_figures(sweeps: tuple[SweepResults, SweepResults]) -> None:
    for name, keys in (
        ("accuracy_over_bits", ("series", "bits")),
        ("oscillation_over_training", ("series", "metric", "epoch")),
        ("layer_oscillation", ("series", "layer", "epoch")),
        ("threshold_distances", ("series", "when", "from")),
        ("strength_sensitivity", ("trial",)),
    ):
        (module,) = [module for module in find_figures() if module.name == name]
        disk, remote = (in_order(module.draw(make_groups(sweep)[0]).frame, *keys) for sweep in sweeps)
        if name == "strength_sensitivity":  # W&B has no sweep file, which has the ranges that were searched
            assert remote[["low", "high"]].isna().all(axis=None)
            disk[["low", "high"]] = remote[["low", "high"]]
        pd.testing.assert_frame_equal(disk, remote)
    pd.testing.assert_frame_equal(*(in_order(summarize(make_groups(s)[0]), "series", "bits") for s in sweeps))


def test_all_pages_are_read(sweeps: tuple[SweepResults, SweepResults]) -> None:
    assert ReadableServer.most_a_page < 10 == len(sweeps[1].finals) + len(sweeps[1].trials)


def test_the_script_reads_it_too(
    served: tuple[Path, ReadableServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "wandb", "--sweep", "mirrored", "--out", str(tmp_path / "out")]
    make_figures.main([*arguments, "--figure", "accuracy_over_bits"])
    assert (tmp_path / "out/accuracy_over_bits.pdf").exists()
    assert "--source wandb --project oscillation-harness" in (tmp_path / "out/accuracy_over_bits.json").read_text()
    with pytest.raises(UserError, match="--figure parameter_importance: left out: 2 cells with one searched"):
        make_figures.main([*arguments, "--figure", "parameter_importance"])


def test_what_is_not_there_is_listed(served: tuple[Path, ReadableServer], monkeypatch: pytest.MonkeyPatch) -> None:
    _, server = served
    finals = [run for run in server.runs.values() if run.job_type == "final" and run.config["method"] != "none"]
    running, broken = finals
    monkeypatch.delitem(running.summary, "record")
    monkeypatch.setattr(running, "exit_code", 1)
    monkeypatch.setitem(broken.summary, "record", broken.summary["record"].replace('"accuracy": 0', '"accuracy": 7'))
    sweep = load_from_wandb(None, "oscillation-harness", "mirrored")
    assert [(one.run_id, one.reason) for one in sweep.failures] == [(running.id, "W&B calls it failed")]
    assert len(sweep.corrupt) == 1
    assert sweep.corrupt[0].startswith(f"{broken.id} on W&B: accuracy 7")
    assert [(one.cell, one.seed) for one in sweep.missing] == [("oscillation,target_bit=2", seed) for seed in (0, 1)]


def test_what_cannot_be_read_is_said(served: tuple[Path, ReadableServer], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no run of a sweep 'mirored'"):
        load_from_wandb(None, "oscillation-harness", "mirored")
    with pytest.raises(UserError, match="Could not find project elsewhere"):
        load_from_wandb(None, "elsewhere", "mirrored")
    import wandb

    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()  # it remembers the key
    with pytest.raises(UserError, match="--source wandb: no W&B key was found"):
        load_from_wandb(None, "oscillation-harness", "mirrored")
