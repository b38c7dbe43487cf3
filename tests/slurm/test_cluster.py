"""slurm/test_cluster.sh behaves like real clusters; what other tests on it rely on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # tests/ has several conftest modules: at run time the name may mean another
    from conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

# Like a worker: a step that says when it is warned, and ends well once it has been restarted.
WARNED = """
echo started ${SLURM_RESTART_COUNT:-0}
[ -n "$SLURM_RESTART_COUNT" ] && exit 0
srun bash -c 'trap "echo warned" USR2; for i in {1..300}; do sleep 0.2; done'
"""


def lines(folder: Path) -> list[str]:
    out = folder / "out"
    return out.read_text().splitlines() if out.exists() else []


def test_a_job_runs_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("echo hello $(srun echo world)", tmp_path)
    cluster.wait_for_states(job, "COMPLETED")
    assert lines(tmp_path) == ["hello world"]


def test_an_array_has_a_state_for_each_task(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("exit $((SLURM_ARRAY_TASK_ID == 2))", tmp_path, "--array=0-2")
    cluster.wait_for_states(job, "COMPLETED", "COMPLETED", "FAILED")


def test_a_cancelled_job_is_seen_without_accounting(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("sleep 300", tmp_path)
    cluster.wait_for_states(job, "RUNNING")
    cluster.run("scancel", job)
    cluster.wait_for_states(job, "CANCELLED")


def test_jobs_get_distinct_gpus(cluster: Cluster, tmp_path: Path) -> None:
    script = "echo gpu ${CUDA_VISIBLE_DEVICES-none}; sleep 3"
    job = cluster.submit(script, tmp_path, "--gpus-per-node=1", "--array=0-1")
    cluster.wait_for_states(job, "COMPLETED", "COMPLETED")
    job = cluster.submit("echo gpu ${CUDA_VISIBLE_DEVICES-none}", tmp_path)
    cluster.wait_for_states(job, "COMPLETED")
    assert sorted(lines(tmp_path)) == ["gpu 0", "gpu 1", "gpu none"]


def test_a_requeued_job_starts_again_soon(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(WARNED, tmp_path)
    cluster.wait_until(lambda: "started 0" in lines(tmp_path), 30)
    cluster.run("scontrol", "requeue", job)
    took = cluster.wait_until(lambda: "started 1" in lines(tmp_path), 40, lambda: str(cluster.states(job)))
    assert took < 25  # the step does not mind TERM: 10 s of KillWait, then 6 s before a requeued job may start
    cluster.wait_for_states(job, "COMPLETED")


def test_preemption_warns_and_requeues(cluster: Cluster, tmp_path: Path) -> None:
    everything = cluster.run("sinfo", "--noheader", "--partition=low", "--format=%c")
    job = cluster.submit(WARNED, tmp_path, "--signal=USR2@30", "--time=60", f"--cpus-per-task={everything}")
    cluster.wait_until(lambda: "started 0" in lines(tmp_path), 30)
    cluster.wait_for_states(job, "RUNNING")
    (tmp_path / "high").mkdir()
    high = cluster.submit("true", tmp_path / "high", "--partition=high", f"--cpus-per-task={everything}")
    cluster.wait_until(lambda: "warned" in lines(tmp_path), 10, lambda: str(lines(tmp_path)))
    assert cluster.states(job) == ["RUNNING"]  # warned before the requeue, with GraceTime to act on it
    cluster.wait_for_states(high, "COMPLETED", timeout=60)
    cluster.wait_for_states(job, "COMPLETED", timeout=40)
    assert "started 1" in lines(tmp_path)


def test_jobs_survive_a_killed_controller(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("echo begin; sleep 25; echo end ${SLURM_RESTART_COUNT:-0}", tmp_path, "--array=0-1")
    cluster.wait_for_states(job, "RUNNING", "RUNNING")
    cluster.script("restart-controller")
    assert cluster.states(job) == ["RUNNING", "RUNNING"]
    cluster.wait_for_states(job, "COMPLETED", "COMPLETED", timeout=60)
    assert sorted(lines(tmp_path)) == ["begin", "begin", "end 0", "end 0"]


def test_up_again_changes_nothing(cluster: Cluster) -> None:
    def daemons() -> list[str]:
        return [pid.read_text() for pid in sorted(cluster.folder.glob("*.pid"))]

    before = daemons()
    assert len(before) == 3
    assert "is up" in cluster.script("up")
    assert daemons() == before
