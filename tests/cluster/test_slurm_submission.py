"""What is submitted to Slurm: the environment of sbatch, the notes of a launch, how it ends when workers die.

`sbatch` and `srun` are stand-ins here; tests/slurm submits to a real one.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_sweep import BASE, Cli
from tiny_sweep import write_sweep

from harness.cluster import pool, slurm
from harness.cluster.pool import WorkerPool
from harness.cluster.profile import Profile
from harness.cluster.sbatch_environment import environment_for_jobs, job_environment
from harness.cluster.worker_info import WorkerInfo
from harness.core.errors import UserError
from harness.launch import main
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig, read_sweep

SPEC = SweepConfig.model_validate(BASE)
ENVIRONMENT = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "HARNESS_STORAGE_PASSWORD": "x"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def script(**profile: Any) -> str:
    return slurm.sbatch_text(SPEC, Profile(**profile), 2, Path("/root"))


# The environment


@pytest.mark.parametrize(
    ("variable", "profile"),
    [
        ("SBATCH_PARTITION", {"partition": "gpu"}),
        ("SBATCH_ACCOUNT", {"account": "mine"}),
        ("SBATCH_RESERVATION", {"sbatch": {"reservation": "mine"}}),
        ("SBATCH_TIMELIMIT", {}),
        ("SBATCH_ARRAY_INX", {}),
        ("SBATCH_MEM_PER_NODE", {}),
        ("SBATCH_MEM_PER_CPU", {}),
        ("SBATCH_MEM_PER_NODE", {"memory_gb": None, "sbatch": {"mem_per_cpu": "4G"}}),
        ("SBATCH_GPUS", {"gpus": 0}),
        ("SBATCH_CPUS_PER_GPU", {}),
        ("SBATCH_NO_REQUEUE", {}),
        ("SBATCH_OUTPUT", {}),
        ("SBATCH_SIGNAL", {}),
        ("SBATCH_WAIT", {}),
    ],
)
def test_the_profile_wins_over_the_environment(variable: str, profile: dict[str, Any]) -> None:
    found = job_environment(script(**profile), {**ENVIRONMENT, variable: "other"})
    assert (found.variables, dict(found.overruled), found.taken) == (ENVIRONMENT, {variable: "other"}, {})
    assert found.in_words() == [
        f"Slurm: {variable}=other: in the environment is ignored; the profile says something else"
    ]


@pytest.mark.parametrize(
    ("variable", "profile"),
    [
        ("SBATCH_PARTITION", {}),
        ("SBATCH_ACCOUNT", {"partition": "gpu"}),
        ("SBATCH_MEM_PER_CPU", {"memory_gb": None}),
        ("SBATCH_EXCLUSIVE", {}),
        ("SBATCH_GRES", {}),
        ("SBATCH_WCKEY", {}),
    ],
)
def test_what_the_profile_does_not_name_is_taken_from_there(variable: str, profile: dict[str, Any]) -> None:
    given = {**ENVIRONMENT, variable: "other"}
    found = job_environment(script(**profile), given)
    assert (found.variables, dict(found.taken), found.overruled) == (given, {variable: "other"}, {})
    assert found.in_words() == [f"Slurm: {variable}=other: from the environment, since the profile does not name it"]


def test_gpus_in_gres_are_the_profiles() -> None:
    assert job_environment(script(), {"SBATCH_GRES": "gpu:8"}).variables == {}
    assert job_environment(script(), {"SBATCH_GRES": "scratch:8"}).variables == {"SBATCH_GRES": "scratch:8"}


OUTER_JOB = ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "SLURMD_NODENAME")


@pytest.mark.parametrize("outer", [*OUTER_JOB, "SLURM_EXPORT_ENV", "SRUN_CPUS_PER_TASK"])
def test_nothing_of_an_outer_job_reaches_the_jobs(outer: str) -> None:
    found = job_environment(script(), {**ENVIRONMENT, outer: "7"})
    assert (found.variables, found.in_words()) == (ENVIRONMENT, [])


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    before = dict(os.environ)
    with pytest.raises(KeyError), environment_for_jobs(script()):
        assert "SLURM_JOB_ID" not in os.environ
        raise KeyError
    assert os.environ == before


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in that keeps the environment it is called in and the file it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    text = f"#!/bin/sh\nenv >{folder}/environment\ncp $1 {folder}/script\necho Submitted batch job 7\n"
    for name in ("sbatch", "srun"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_sbatch_gets_that_environment_and_the_file_that_a_dry_run_shows(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*OUTER_JOB, "SBATCH_TIMELIMIT", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    profile = Profile(python="/envs/x/bin/python", gpu_type="a100", gpus=2, memory_gb=None)
    jobs = slurm.submit(SPEC, profile, [print, print], tmp_path / "runs")
    assert [job.job_id for job in jobs] == ["7_0", "7_1"]
    given = (sbatch / "environment").read_text().splitlines()
    assert "SBATCH_ACCOUNT=7" in given
    assert not [line for line in given if line.startswith((*OUTER_JOB, "SBATCH_TIMELIMIT"))]
    assert (sbatch / "script").read_text() == slurm.sbatch_text(SPEC, profile, 4, tmp_path / "runs")


@pytest.mark.parametrize(("python", "begins"), [(None, sys.executable), ("apptainer exec x.sif python", "apptainer")])
def test_the_profile_says_which_python_runs(python: str | None, begins: str) -> None:
    last = script(python=python).splitlines()[-1]
    assert f" --export=ALL {begins}" in last
    assert " -u -m submitit.core._submit /root/small/logs" in last


def test_settings_of_squeue_do_not_change_what_it_is_asked(sbatch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    slurm.ask(["sbatch", "/dev/null"])
    assert not [line for line in (sbatch / "environment").read_text().splitlines() if line.startswith(("SQUEUE", "SC"))]


# What a launch says and refuses


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({}, "of each job's 4 h, 3 h 58 min 30 s are for work: 90 s before the end"),
        ({"time": "00:02:00"}, "of each job's 2 min, 30 s are for work: 90 s before the end"),
        ({"time": "2-0", "signal_delay_s": 600}, "of each job's 48 h, 47 h 50 min are for work: 600 s before the end"),
    ],
)
def test_it_says_how_much_of_a_job_is_left_for_work(profile: dict[str, Any], said: str) -> None:
    assert said in slurm.launch_notes(SPEC, Profile(**profile), Path("/root"))[0]


@pytest.mark.parametrize("line", ["conda activate x", "source .venv/bin/activate", "eval ..; micromamba activate x"])
def test_it_says_that_activating_changes_no_python(line: str) -> None:
    notes = slurm.launch_notes(SPEC, Profile(setup=(line,)), Path("/root"))
    assert f"setup: {line!r} does not change which Python runs the workers: {sys.executable}" in notes[1]
    assert "activate" not in str(slurm.launch_notes(SPEC, Profile(setup=(line,), python="python"), Path("/root")))


@pytest.mark.parametrize("name", ["%j", "a%A", "%x", "%4u", "100%%", "my%20new", "a\\b"])
def test_a_root_that_slurm_would_change_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--root .*: Slurm replaces .* in the names of log files"):
        slurm.check_root(Path("/data") / name)


@pytest.mark.parametrize("name", ["100%", "5% done", "%", "%q", "my%20dogs", "%z%"])
def test_a_bare_percent_sign_is_fine(name: str) -> None:
    slurm.check_root(Path("/data") / name / "runs")


def test_the_root_matters_on_slurm_only(cli: Cli, tmp_path: Path) -> None:
    root, sweep = tmp_path / "%j", str(cli.file(BASE))
    for options in ((), ("--dry-run",)):
        with pytest.raises(UserError, match=r"--root .*%j': Slurm replaces '%j'"):
            main([sweep, "--cluster", "slurm", "--root", str(root), *options])
    assert not root.exists()
    assert main([sweep, "--root", str(root), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("profile", "options", "workers"),
    [
        ("array_parallelism: 3\n", (), 3),
        ("array_parallelism: 1\ngpus: 2\nruns_per_gpu: 2\n", (), 4),
        ("{}\n", (), 6),  # all runs of the sweep
        ("{}\n", ("--workers", "2"), 2),
        ("{}\n", ("--set", "workers=1"), 1),
    ],
)
def test_there_are_as_many_workers_as_the_profile_can_run_at_once(
    profile: str, options: tuple[str, ...], workers: int, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cli.file(profile, "p.yaml")
    cli.accepted(cli.file(BASE), "--cluster", "slurm", "--profile", file, *options)
    said = capsys.readouterr().out
    assert f"\n{workers} worker{'s' * (workers > 1)}, cluster slurm" in said
    assert "3 h 58 min 30 s are for work" in said


# Workers that die


def dead(folder: Path, number: int, log: str | None, **status: Any) -> WorkerInfo:
    path = folder / f"{number}.err"
    if log is not None:
        path.write_text(log)
    return WorkerInfo(f"w{number}", status, {"cluster": "slurm", "log": str(path)}, 99.0)


FATAL = "srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE are mutually exclusive."


@pytest.mark.parametrize(
    ("log", "status", "said"),
    [
        (f"first\n\n{FATAL}\n", {}, ["0.err, ends with:\n  first\n  " + FATAL]),
        ("\n".join(f"line {n}" for n in range(20)), {}, ["ends with:\n  line 15\n  line 16\n"]),
        ("ImportError: no harness\n", {"state": "failed", "reason": "no disk"}, ["run: no disk; the log of the first"]),
        (None, {}, ["the first of them wrote no log to", "do the nodes see that folder?"]),
    ],
)
def test_a_launch_that_gives_up_shows_the_end_of_the_first_dead_workers_log(
    log: str | None, status: dict[str, Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = queue.open_sweep(read_sweep(write_sweep(tmp_path)), tmp_path / "runs")
    plan.top_up(sweep)
    workers = [dead(tmp_path, 0, log, **status), *(dead(tmp_path, n, "other\n") for n in range(1, 12))]
    launched = WorkerPool(sweep, "slurm", 2, Profile())
    launched._mine = {worker.name for worker in workers}
    present: list[WorkerInfo] = []
    monkeypatch.setattr(pool, "list_workers", lambda folder: present)
    launched.replace_lost()
    present += workers
    with pytest.raises(UserError, match="12 workers ended without finishing a run") as refused:
        launched.replace_lost()
    assert all(part in str(refused.value) for part in said), refused.value
