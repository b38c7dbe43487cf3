"""Workers that wait in Slurm's queue for what they never get: said by launches, dry runs and status, with a way out.

Slurm's commands are stand-ins here: what the queue says is a test's own.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_sweep import BASE, Cli

from harness import status
from harness.cluster.profile import Profile
from harness.cluster.waiting import asked, never_starts, waiting_notes
from harness.cluster.worker_info import WorkerInfo, list_workers
from harness.core.errors import UserError
from harness.launch import main
from harness.records.files import read_json, write_json

#: The test sweep's runs, each of which gets a worker where the profile allows it.
RUNS = 6
SMALL = "partition: low\ngpus: 0\ncpus: 1\nmemory_gb: 1\n"
Queue = Callable[..., None]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Sets the reasons why jobs 7_0, 7_1, ... wait; a job without one runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {"sbatch": "echo Submitted batch job 7", "srun": "true", "sinfo": "echo low", "squeue": "cat $0.txt"}
    for name, line in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    (folder / "squeue.txt").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def say(*reasons: str | None) -> None:
        jobs = [f"7_{n}|{'PENDING' if why else 'RUNNING'}|{why}\n" for n, why in enumerate(reasons)]
        (folder / "squeue.txt").write_text("".join(jobs))

    return say


def launch(cli: Cli, profile: str | None, *options: str) -> int:
    given = () if profile is None else ("--profile", str(cli.file(profile, "p.yaml")))
    path = str(cli.file(BASE))
    return main([path, "--root", str(cli.root), "--cluster", "slurm", *given, *options])


def test_a_launch_with_another_profile_is_refused_where_no_waiting_job_can_start(
    cli: Cli, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(cli, None) == 0
    queue(*["PartitionConfig"] * RUNS)
    before = {path: path.stat().st_mtime_ns for path in cli.root.rglob("*.json")}
    with pytest.raises(UserError) as refused:
        launch(cli, SMALL, "--workers", "1")
    assert str(refused.value) == (
        f"{cli.root / 'small'}: 6 workers wait in Slurm's queue, submitted with another profile (partition: null, here "
        "low; gpus: 1, here 0; cpus: 8, here 1; memory_gb: 32, here 1): PartitionConfig (no node of the partition has "
        "what the job asks for). They never start by themselves: "
        f"`python -m harness.cancel {cli.root / 'small'}`, then launch again"
    )
    assert {path: path.stat().st_mtime_ns for path in cli.root.rglob("*.json")} == before
    capsys.readouterr()
    assert launch(cli, SMALL, "--workers", "1", "--dry-run") == 2
    said = capsys.readouterr().out
    assert f"would be refused: {refused.value}" in said
    assert "6 runs left, 6 workers on it, 6 of them waiting" in said
    assert "no job would be submitted: enough workers are there" in said
    assert "#SBATCH" not in said


def test_it_is_noted_where_some_may_start(cli: Cli, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(cli, None, "--workers", "2") == 0
    queue("PartitionConfig", "Priority")
    for options in ((), ("--dry-run",)):
        capsys.readouterr()
        assert launch(cli, SMALL, "--workers", "2", *options) == 0
        said = capsys.readouterr().out
        assert (
            "note: 2 workers wait in Slurm's queue, submitted with another profile (partition: null, here low" in said
        )
        assert "): PartitionConfig (no node of the partition has what the job asks for), Priority. They count" in said
        assert "enough workers are there" in said


def test_the_profile_that_they_were_submitted_with_is_no_other(
    cli: Cli, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(cli, SMALL, "--workers", "2") == 0
    queue("Resources", "Priority")
    capsys.readouterr()
    other_speed = SMALL + "array_parallelism: 2\nsignal_delay_s: 30\nsetup: [module load x]\n"
    assert launch(cli, other_speed, "--workers", "2") == 0
    assert "note" not in capsys.readouterr().out
    queue("BadConstraints", "Priority")
    assert launch(cli, SMALL, "--workers", "2") == 0
    assert (
        "note: 1 worker waits in Slurm's queue: BadConstraints (no node has what the job asks for). They never"
        in capsys.readouterr().out
    )


def test_a_dry_run_shows_the_jobs_that_are_missing(cli: Cli, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(cli, SMALL, "--workers", "2") == 0
    queue("Priority", None)
    capsys.readouterr()
    assert launch(cli, SMALL, "--workers", "5", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "job array that would be submitted beside the 2 workers there:" in said
    assert "#SBATCH --array=0-2%3" in said
    queue()
    assert launch(cli, SMALL, "--workers", "5", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-4%5" in said
    assert "6 runs left, 0 workers on it\n" in said


def test_workers_of_a_version_that_wrote_no_profile_are_of_no_other(cli: Cli, queue: Queue) -> None:
    assert launch(cli, None, "--workers", "2") == 0
    for path in cli.root.glob("small/workers/*/submitted.json"):
        entry = dict(read_json(path) or {})
        assert entry.pop("asked") == asked(Profile())
        write_json(path, entry)
    queue("PartitionConfig", "Priority")
    (note,) = waiting_notes(list_workers(cli.root / "small"), Profile(cpus=1), cli.root / "small")
    assert note.startswith("note: 1 worker waits in Slurm's queue: PartitionConfig")


def test_status_says_what_a_reason_means(cli: Cli, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(cli, None) == 0
    queue(*["PartitionConfig"] * (RUNS - 1), "Priority")
    capsys.readouterr()
    assert status.main([str(cli.root / "small")]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert (
        "5 workers will not start (PartitionConfig): no node of the partition has what the job asks for; "
        "python -m harness.cancel, then launch with another profile" in said
    )


@pytest.mark.parametrize(
    "reason",
    [
        *("PartitionConfig", "BadConstraints", "PartitionTimeLimit", "InvalidAccount", "InvalidQOS"),
        *("AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "QOSMaxGRESPerNode", "QOSMinGRES"),
    ],
)
def test_reasons_that_do_not_pass(reason: str) -> None:
    assert never_starts(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *("Priority", "Resources", "None", None, "Slurm does not answer", "Reservation", "BeginTime", "JobHeldUser"),
        *("ReqNodeNotAvail, UnavailableNodes:n1", "AssocGrpCpuLimit", "QOSMaxJobsPerUserLimit", "PartitionDown"),
        *("QOSMaxCpuPerUserLimit", "AssocMaxJobsLimit", "PartitionNodeLimit", "JobArrayTaskLimit", "Licenses"),
    ],
)
def test_reasons_that_may_pass(reason: str | None) -> None:
    assert never_starts(reason) is None


def test_a_slurm_that_does_not_answer_is_no_reason_to_refuse(tmp_path: Path) -> None:
    worker = WorkerInfo("w", {}, {"cluster": "slurm", "job_id": "7", "asked": asked(Profile())}, 1.0, queue=None)
    (note,) = waiting_notes([worker], Profile(cpus=2), tmp_path)
    assert "(cpus: 8, here 2): Slurm does not answer. They count" in note
