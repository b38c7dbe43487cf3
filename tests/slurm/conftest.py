"""A real Slurm in a folder of its own, by slurm/test_cluster.sh."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "test_cluster.sh"


class Cluster:
    """A running cluster. `env` is what a subprocess needs to reach it, and nothing of another cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "HARNESS_TEST_CLUSTER")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self.env["SLURM_CONF"] = str(folder / "slurm.conf")

    def script(self, *arguments: str) -> str:
        """The output of slurm/test_cluster.sh on this cluster."""
        env = {**self.env, "HARNESS_TEST_CLUSTER": str(self.folder)}
        done = subprocess.run(["bash", SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *command: str | Path, cwd: Path | None = None, timeout: float = 60) -> str:
        """The standard output of a command that has to succeed."""
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, folder: Path, *options: str) -> str:
        """Submits shell lines as a job that writes to folder/out; the job's id."""
        (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
        log = f"--output={folder}/out"
        return self.run("sbatch", "--parsable", "--open-mode=append", log, *options, folder / "job.sh")

    def states(self, job: str) -> list[str]:
        """The job's state, or its array tasks' states, also of ended ones, without accounting."""
        return self.run("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T").split()

    def wait_for_states(self, job: str, *states: str, timeout: float = 30) -> float:
        """Waits until these, sorted, are the job's states. The seconds that took."""
        return self.wait_until(
            lambda: sorted(self.states(job)) == sorted(states), timeout, lambda: str(self.states(job))
        )

    def wait_until(self, condition: Callable[[], bool], timeout: float, seen: Callable[[], str] = str) -> float:
        """Waits for a condition; the seconds that took. `seen` says in the failure what was there instead."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < timeout, f"not within {timeout} s: {seen()}\n{self.logs()}"
            time.sleep(0.2)
        return time.monotonic() - start

    def logs(self) -> str:
        return "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One cluster for a session's tests."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (Debian: apt-get install slurm-wlm munge)")
    # Not tmp_path: a socket's path has to be shorter than 108 characters.
    running = Cluster(Path(tempfile.mkdtemp(prefix="harness-slurm-", dir="/tmp")))
    try:
        running.script("up")
        yield running
    finally:
        running.script("down")
