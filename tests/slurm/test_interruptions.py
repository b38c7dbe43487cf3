"""Preemption and the time limit: the same trial goes on at the same step, on W&B too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from slurm_sweep import EPOCHS, ONE_RUN, epochs, launch, on_slurm, only_run, rows, status, write_profile
from wandb_server import WandbServer

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of the run when nothing happens to it."""
    import os

    folder = tmp_path_factory.mktemp("undisturbed")
    ended, output = launch(folder, ONE_RUN, dict(os.environ), "runs", "--workers", "1")
    assert ended == 0, output
    return record(folder / "runs/one")


def record(sweep: Path) -> dict[str, Any]:
    """The record of the only run."""
    found: dict[str, Any] = json.loads((only_run(sweep) / "record.json").read_text())
    return found


def synced(run: Path, env: dict[str, str]) -> list[dict[str, Any]]:
    """The history that W&B has after `wandb sync` of everything a run wrote offline."""
    with WandbServer() as server:
        folders = sorted(str(path) for path in run.glob("wandb/offline-run-*"))
        command = [sys.executable, "-m", "wandb", "sync", *folders]
        subprocess.run(command, env={**env, **server.environment()}, check=True, capture_output=True, timeout=120)
        assert list(server.runs) == [run.name]
        return server.runs[run.name].history


def assert_as_if_nothing_had_happened(
    cluster: Cluster, sweep: Path, undisturbed: dict[str, Any], attempts: int
) -> None:
    found = record(sweep)
    for key in ("run_id", "config", "epochs", "best_epoch", "monitor", "rows", "resolved"):
        assert found[key] == undisturbed[key], key
    assert found["provenance"]["attempts"] >= attempts
    run = only_run(sweep)
    assert epochs(run) == list(range(1, EPOCHS + 1))
    fragments = list(run.glob("wandb/offline-run-*"))
    assert len(fragments) == found["provenance"]["attempts"]
    assert {path.name.rpartition("-")[2] for path in fragments} == {run.name}
    assert [row["epoch"] for row in synced(run, cluster.env)] == list(range(1, EPOCHS + 1))
    cell = status(sweep, cluster.env)["cells"][0]
    assert (cell["total"], cell["done"], cell["waiting"], cell["running"]) == (1, 1, 0, 0)


def test_preempted_by_a_higher_priority_job(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    ended, output = launch(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1"))
    assert ended == 0, output
    sweep = tmp_path / "runs/one"
    cluster.wait_until(lambda: any(len(epochs(run)) > 5 for run in sweep.glob("runs/*")), 60)
    job = status(sweep, cluster.env)["workers"][0]["job_id"]
    other = tmp_path / "other"
    other.mkdir()
    urgent = cluster.submit("sleep 3", other, "--partition=high", "--exclusive")
    took = cluster.wait_until(lambda: cluster.states(urgent) == ["RUNNING"], 20)
    assert took < 15, "the worker left by itself, before the end of its grace time"
    assert not rows(sweep), "it was preempted too late to prove anything"
    waiting = status(sweep, cluster.env)["workers"][0]
    assert (waiting["state"], waiting["job_id"]) == ("pending", job)
    cluster.wait_until(lambda: bool(rows(sweep)), 100, lambda: str(status(sweep, cluster.env)))
    worker = status(sweep, cluster.env)["workers"]
    assert [(item["job_id"], item["attempt"]) for item in worker] == [(job, 2)]
    assert_as_if_nothing_had_happened(cluster, sweep, undisturbed, attempts=2)


def test_preempted_by_a_cluster_that_sends_sigterm(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    # Without preempt_send_user_signal a preempted job gets SIGTERM, exactly as a cancelled one does.
    config = cluster.folder / "slurm.conf"
    text = config.read_text()
    config.write_text(text.replace("SlurmctldParameters=preempt_send_user_signal", "#SlurmctldParameters="))
    try:
        cluster.run("scontrol", "reconfigure")
        ended, output = launch(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1"))
        assert ended == 0, output
        sweep = tmp_path / "runs/one"
        cluster.wait_until(lambda: any(len(epochs(run)) > 5 for run in sweep.glob("runs/*")), 60)
        other = tmp_path / "other"
        other.mkdir()
        cluster.submit("sleep 3", other, "--partition=high", "--exclusive")
        cluster.wait_until(lambda: bool(rows(sweep)), 120, lambda: str(status(sweep, cluster.env)))
        assert_as_if_nothing_had_happened(cluster, sweep, undisturbed, attempts=2)
    finally:
        config.write_text(text)
        cluster.run("scontrol", "reconfigure")


def test_out_of_time_again_and_again(cluster: Cluster, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    # Slurm warns up to a minute early: of this minute the worker has between 6 and 27 seconds.
    profile = write_profile(tmp_path, time="00:01:00", signal_delay_s=30)
    ended, output = launch(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1", profile=profile))
    assert ended == 0, output
    sweep = tmp_path / "runs/one"
    cluster.wait_until(lambda: bool(rows(sweep)), 240, lambda: str(status(sweep, cluster.env)))
    assert_as_if_nothing_had_happened(cluster, sweep, undisturbed, attempts=2)
