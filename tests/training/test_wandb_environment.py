"""What of the surroundings reaches W&B: not its variables of other runs, no name that it refuses."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_sweep import here, write_sweep

from harness.cli.status_report import status_report
from harness.core.errors import UserError
from harness.records.wandb_names import check_project, shortened, tag_of
from harness.sweep.queue import load_sweep
from harness.training import wandb_environment
from harness.training.config import complete
from harness.training.wandb_environment import environment_of_runs, ignored, malformed_url
from harness.training.wandb_mirror import Mirror, explain_mode, group_of, wandb_mode

RUN_ID = "0123456789ab"
RAW: dict[str, Any] = {
    "target_bit": 2,
    "methods": ["ste"],
    "model": {"name": "mlp5", "width": 8},
    "data": {"name": "digits"},
    "deploy": {"scale": "recalibrate"},
    "runtime": {"wandb": "offline"},
}
#: Each of them took away the copy of a run, or its name.
HOSTILE = {
    "WANDB_SWEEP_ID": "abcdefgh",
    "WANDB_SERVICE": "3-999999-unix-/nowhere/socket",
    "WANDB_TAGS": "x" * 65,
    "WANDB_PROJECT": "a/b",
    "WANDB_BASE_URL": "wandb.example.org",
    "WANDB_MODE": "nonsense",
    "WANDB_API_KEY": "key with a line end\n",
    "WANDB_HTTP_TIMEOUT": "soon",
    "WANDB_RUN_ID": "a:b",
    "WANDB_RESUME": "sometimes",
    "WANDB_LAUNCH": "true",
}


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account and no settings of the user who runs the tests; what is ignored has not been reported yet."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(wandb_environment, "_said", False)


# Variables


def mirrored(tmp_path: Path) -> str:
    """The folder of the offline copy of a run, by name; fails without one."""
    import wandb

    wandb.teardown()  # a process reads its environment once
    lost: list[str] = []
    mirror = Mirror(complete(RAW), RUN_ID, tmp_path / "run", lost=lost.append)
    mirror.finish({}, {}, tmp_path / "best")
    assert not lost
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    return folder.name


def test_a_run_has_its_copy_and_its_name_whatever_is_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert mirrored(tmp_path).endswith(RUN_ID)
    said = capfd.readouterr().err
    assert said.splitlines() == [
        "W&B: ignored in the environment, since the sweep file says it: WANDB_LAUNCH, WANDB_PROJECT, WANDB_RESUME, "
        "WANDB_RUN_ID, WANDB_SERVICE, WANDB_SWEEP_ID, WANDB_TAGS"
    ]
    assert os.environ["WANDB_SWEEP_ID"] == "abcdefgh"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_each_of_them_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, HOSTILE[name])
    assert mirrored(tmp_path).endswith(RUN_ID)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_DIR", "WANDB_HTTP_PROXY"])
def test_key_address_entity_and_folders_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert ignored(os.environ) == []
    with environment_of_runs(online=True):
        assert os.environ[name] == "x"


@pytest.mark.parametrize("name", ["WANDB_NOTES", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_CONFIG", "WANDB_X_LABEL"])
def test_nothing_else_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert ignored(os.environ) == [name]
    with environment_of_runs(online=True):
        assert name not in os.environ
    assert os.environ[name] == "x"


def test_the_mode_counts_and_is_not_shown_to_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (wandb_mode("auto"), ignored(os.environ)) == ("off", [])
    with environment_of_runs(online=False):
        assert "WANDB_MODE" not in os.environ


def test_the_process_that_wandb_started_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "stale")
    with environment_of_runs(online=True):
        assert "WANDB_SERVICE" not in os.environ
        os.environ["WANDB_SERVICE"] = "own"
    assert os.environ["WANDB_SERVICE"] == "own"


@pytest.mark.parametrize("url", ["wandb.example.org", "http://", "https://a b", "ftp://x", "http//x"])
def test_an_address_that_is_none_means_offline_and_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert wandb_mode("auto") == "offline"
    assert f"WANDB_BASE_URL is no address ({url!r}), so runs are mirrored offline" in explain_mode("auto")


@pytest.mark.parametrize("url", ["", "https://api.wandb.ai", "http://127.0.0.1:8080", "http://wandb.local/at/"])
def test_an_address_that_is_one(url: str) -> None:
    assert malformed_url({"WANDB_BASE_URL": url}) is None


# Names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("team/project", "did you mean 'team-project'?"),
        ("100%", "did you mean '100'?"),
        ("a:b#c", "did you mean 'a-b-c'?"),
        ("x" * 129, "(legal: 1 to 128 characters, none of them / \\ # ? % :)"),
        ("", "(legal: 1 to 128 characters"),
        ("///", "(legal: 1 to 128 characters"),
    ],
)
def test_a_project_that_wandb_refuses_is_refused_before(name: str, said: str) -> None:
    import wandb

    with pytest.raises(UserError) as refused:
        check_project(name)
    assert f"runtime.wandb_project: {name!r} is no name of a project on W&B" in str(refused.value)
    assert said in str(refused.value)
    if name:  # its own client takes an empty one
        with pytest.raises(wandb.errors.UsageError):
            wandb.Settings(project=name)


@pytest.mark.parametrize("name", ["oscillation-harness", "x" * 128, "Größe & Co.", "a b"])
def test_a_project_that_it_takes(name: str) -> None:
    check_project(name)


def test_a_launch_refuses_it_unless_wandb_is_off(tmp_path: Path) -> None:
    sweep, root = write_sweep(tmp_path, 1), tmp_path / "runs"
    options = ("--dry-run", "--set", "runtime.wandb_project=a/b", "--set")
    ended, said = here(sweep, root, *options, "runtime.wandb=auto")
    assert (ended, "runtime.wandb_project: 'a/b' is no name" in said) == (2, True)
    assert here(sweep, root, *options, "runtime.wandb='off'")[0] == 0


@pytest.mark.parametrize("length", [64, 65, 300])
def test_a_long_tag_ends_with_a_hash_of_the_whole(length: int) -> None:
    import wandb

    tags = [tag_of("x" * length + end) for end in ("", "y")]
    assert len(set(tags)) == 2
    assert max(map(len, tags)) == 64
    assert wandb.Settings(run_tags=tags).run_tags == tuple(tags)
    assert tag_of("x" * 64) == "x" * 64


def test_a_long_group_is_shortened() -> None:
    config = complete(RAW)
    methods = tuple({"name": "m" * 50 + str(number)} for number in range(4))
    group = group_of(config.model_copy(update={"methods": methods}))
    assert len(group) == 128
    assert group.startswith("mlp5/mmm")
    assert group != group_of(config.model_copy(update={"methods": methods[:3]}))
    assert shortened(group_of(config), 128) == "mlp5/ste/w2"


# Runs without a copy


def test_status_counts_runs_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    from harness import status

    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("no room")

    monkeypatch.setattr(wandb, "init", refuse)
    path = tmp_path / "one.yaml"
    raw = {key: value for key, value in RAW.items() if key != "methods"}
    train = {"train": {"epochs": 0}, "data": {"name": "digits", "train_fraction": 0.1}}
    sweep = {"name": "one", "base": {**raw, **train}, "cells": [{"methods": "ste"}]}
    path.write_text(yaml.safe_dump({**sweep, "tune": {"trials": 0}, "final": {"seeds": [0]}}))
    assert here(path, tmp_path / "runs", "--cluster", "debug")[0] == 0
    found = status_report(load_sweep(tmp_path / "runs/one"))
    assert list(found["without_mirror"].values()) == ["start failed (UsageError: no room)"]
    capsys.readouterr()
    status.main([str(tmp_path / "runs/one")])
    assert "W&B: 1 run has no whole copy there; " in capsys.readouterr().out
