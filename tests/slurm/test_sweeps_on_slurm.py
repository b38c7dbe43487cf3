"""Whole sweeps on a real Slurm: the same numbers as elsewhere, one set of workers, clear refusals."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from slurm_sweep import (
    EPOCHS,
    MANY_RUNS,
    ONE_RUN,
    REPOSITORY,
    epochs,
    interrupt,
    launch,
    on_slurm,
    only_run,
    rows,
    start,
    status,
    without,
    write_profile,
)

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]


def test_slurm_and_local_workers_give_the_same_numbers(cluster: Cluster, tmp_path: Path) -> None:
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "slurm", *on_slurm("--workers", "2", "--wait"))
    assert ended == 0, output
    assert "2 workers submitted, 8 runs to go" in output
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "local", "--workers", "2")
    assert ended == 0, output
    assert len(rows(tmp_path / "slurm/many")) == 8
    assert rows(tmp_path / "slurm/many") == rows(tmp_path / "local/many")


def test_two_launches_at_once_submit_one_set_of_workers(cluster: Cluster, tmp_path: Path) -> None:
    both = [start(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "2")) for _ in range(2)]
    printed = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    found = status(tmp_path / "runs/many", cluster.env)
    assert len(found["workers"]) == 2, printed
    cluster.wait_until(lambda: status(tmp_path / "runs/many", cluster.env)["state"] == "complete", 120)
    assert len(rows(tmp_path / "runs/many")) == 8


def test_scancel_without_accounting_shows_cancelled_and_the_run_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    sweep = tmp_path / "runs/one"
    assert launch(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1"))[0] == 0
    cluster.wait_until(lambda: any(len(epochs(run)) > 5 for run in sweep.glob("runs/*")), 60)
    job = status(sweep, cluster.env)["workers"][0]["job_id"]
    cluster.run("scancel", job)
    took = cluster.wait_until(lambda: status(sweep, cluster.env)["workers"][0]["state"] == "cancelled", 10)
    found = status(sweep, cluster.env)
    assert (found["cells"][0]["waiting"], found["cells"][0]["running"]) == (1, 0), took
    before = len(epochs(only_run(sweep)))
    assert 5 < before < EPOCHS
    ended, output = launch(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1", "--wait"))
    assert ended == 0, output
    assert epochs(only_run(sweep)) == list(range(1, EPOCHS + 1))


def test_cancel_stops_all_workers_and_who_follows_them(cluster: Cluster, tmp_path: Path) -> None:
    follower = start(tmp_path, ONE_RUN, cluster.env, "runs", *on_slurm("--workers", "1", "--wait"))
    sweep = tmp_path / "runs/one"
    cluster.wait_until(lambda: any(epochs(run) for run in sweep.glob("runs/*")), 60)
    cluster.run(sys.executable, "-m", "harness.cancel", sweep)
    output, _ = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert "cancelled by harness.cancel" in output
    found = status(sweep, cluster.env)
    assert (found["state"], found["workers"][0]["state"]) == ("cancelled", "cancelled")


def test_ctrl_c_leaves_the_workers_of_a_followed_launch_at_work(cluster: Cluster, tmp_path: Path) -> None:
    follower = start(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "2", "--wait"))
    sweep = tmp_path / "runs/many"
    cluster.wait_until(lambda: bool(rows(sweep)), 60)
    interrupt(follower)
    assert follower.returncode == 130
    cluster.wait_until(lambda: len(rows(sweep)) == 8, 90)


def test_tasks_of_a_job_share_its_gpus(cluster: Cluster, tmp_path: Path) -> None:
    # Two GPUs that exist for Slurm only, two runs on each: one job of four workers.
    profile = write_profile(tmp_path, gpus=2, runs_per_gpu=2)
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "4", profile=profile))
    assert ended == 0, output
    sweep = tmp_path / "runs/many"
    cluster.wait_until(lambda: status(sweep, cluster.env)["state"] == "complete", 120)
    workers = status(sweep, cluster.env)["workers"]
    assert sorted(worker["gpu"] for worker in workers) == ["0", "0", "1", "1"]
    assert len({worker["job_id"] for worker in workers}) == 1
    assert len(rows(sweep)) == 8


def test_launched_inside_another_job_and_against_the_environment(cluster: Cluster, tmp_path: Path) -> None:
    # SLURM_MEM_PER_CPU of the outer job made srun refuse to start any worker; so did --export=NONE.
    (tmp_path / "sweep.yaml").write_text(MANY_RUNS)
    options = (str(tmp_path / "sweep.yaml"), "--root", str(tmp_path / "runs"), *on_slurm("--workers", "2", "--wait"))
    command = shlex.join([sys.executable, "-m", "harness.launch", *options])
    leaked = "export SBATCH_PARTITION=nowhere SBATCH_TIMELIMIT=1 SBATCH_EXPORT=NONE"
    job = cluster.submit(f"cd {REPOSITORY}\n{leaked}\n{command}", tmp_path, "--mem-per-cpu=100", "--time=10")
    cluster.wait_for_states(job, "COMPLETED", timeout=150)
    said = (tmp_path / "out").read_text()
    assert len(rows(tmp_path / "runs/many")) == 8, said
    assert "Slurm: SBATCH_EXPORT=NONE: from the environment" in said
    assert "Slurm: SBATCH_PARTITION=nowhere, SBATCH_TIMELIMIT=1: in the environment is ignored" in said


def test_a_launch_whose_workers_all_die_says_why(cluster: Cluster, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, python="/nowhere/python")
    ended, output = launch(
        tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "8", "--wait", profile=profile)
    )
    assert ended == 2, output
    assert "workers ended without finishing a run; the log of the first" in output
    assert "/nowhere/python: No such file or directory" in output


def test_refusals_say_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    def refused(env: dict[str, str], *options: str) -> str:
        ended, output = launch(tmp_path, MANY_RUNS, env, "runs", *options)
        assert ended == 2, output
        assert "Traceback" not in output
        assert not (tmp_path / "runs").exists(), "something was started"
        return output

    partition = write_profile(tmp_path, partition="lwo")
    message = refused(cluster.env, *on_slurm(profile=partition))
    assert "unknown partition 'lwo'; did you mean 'low'? (legal: high, low, term)" in message
    unknown = write_profile(tmp_path, partitoin="low")
    assert "did you mean 'partition'" in refused(cluster.env, *on_slurm(profile=unknown))
    message = refused(without(cluster.env, tmp_path, "sbatch"), *on_slurm())
    assert "sbatch is not on this machine" in message
    down = tmp_path / "slurm.conf"
    text = (cluster.folder / "slurm.conf").read_text().splitlines()
    lines = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in text]
    down.write_text("\n".join([*lines, "MessageTimeout=3"]))
    begun = time.monotonic()
    message = refused({**cluster.env, "SLURM_CONF": str(down)}, *on_slurm())
    assert "Slurm's controller does not answer" in message
    assert time.monotonic() - begun < 60


def test_jobs_that_never_start_are_said_with_the_way_out(cluster: Cluster, tmp_path: Path) -> None:
    sweep = tmp_path / "runs/many"
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "runs", "--cluster", "slurm")  # --profile is forgotten
    assert ended == 2, output
    assert "no node can take the job: cpus: 8: the largest node of partition low has 4 (legal: 1 to 4)" in output
    # Where sinfo does not tell what nodes have, Slurm takes the job, and never starts it.
    silent = tmp_path / "bin/sinfo"
    silent.parent.mkdir()
    real = shutil.which("sinfo", path=cluster.env["PATH"])
    silent.write_text(f'#!/bin/sh\ncase "$*" in *--exact*) exit 0;; esac\nexec {real} "$@"\n')
    silent.chmod(0o755)
    blind = {**cluster.env, "PATH": f"{silent.parent}:{cluster.env['PATH']}"}
    ended, output = launch(tmp_path, MANY_RUNS, blind, "runs", "--cluster", "slurm")
    assert ended == 0, output
    cluster.wait_until(
        lambda: {each["why"] for each in status(sweep, cluster.env)["workers"]} == {"PartitionConfig"}, 30
    )
    for options in ((), ("--dry-run",)):
        ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "1", *options))
        assert ended == 2, output
        assert "8 workers wait in Slurm's queue, submitted with another profile (partition: null, here low;" in output
        assert "PartitionConfig (no node of the partition has what the job asks for). They never start" in output
    assert "will not start (PartitionConfig): no node" in cluster.run(sys.executable, "-m", "harness.status", sweep)
    cluster.run(sys.executable, "-m", "harness.cancel", sweep)
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm("--workers", "2", "--wait"))
    assert ended == 0, output
    assert len(rows(sweep)) == 8


def test_what_sbatch_refuses_is_said_in_its_words(cluster: Cluster, tmp_path: Path) -> None:
    profile = write_profile(tmp_path, sbatch={"constraint": "no-such-feature"})
    ended, output = launch(tmp_path, MANY_RUNS, cluster.env, "runs", *on_slurm(profile=profile))
    assert ended == 2, output
    assert "sbatch refused the job" in output
    assert "Invalid feature specification" in output
