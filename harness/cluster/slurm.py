"""Slurm: what submits jobs, the sbatch file, and Slurm's commands, all run by `ask`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cluster.profile import Profile
from harness.cluster.sbatch_environment import environment_for_jobs, job_environment
from harness.core.errors import UserError, unknown
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.config import SweepConfig

#: Jobs of one array: Slurm's MaxArraySize is 1001 unless an administrator chose otherwise.
ARRAY_SIZE = 1000
#: What Slurm replaces in the name of a log file, as in `man sbatch`. A backslash turns all replacements off.
_REPLACED = re.compile(r"%\d*[%AaJjNnstuxb]|\\")


def submit(spec: SweepConfig, profile: Profile, workers: Sequence[Any], root: Path) -> list[Any]:
    """Submit one job for each worker, a callable, in job arrays; returns Submitit's jobs in the same order.

    Each job has as many tasks as the profile puts workers in a job. Raises UserError with sbatch's reason.
    """
    import submitit

    tasks, jobs = profile.workers_a_job(spec.runs_per_gpu), []
    for start in range(0, len(workers), ARRAY_SIZE):
        array = workers[start : start + ARRAY_SIZE]
        # A worker that reaches its time limit is requeued as often as it takes.
        executor: Any = submitit.SlurmExecutor(_logs(spec, root), max_num_timeout=100_000, python=profile.python)
        executor.update_parameters(job_name=spec.name, **profile.submitit_parameters(len(array), tasks))
        try:
            with environment_for_jobs(sbatch_text(spec, profile, len(array) * tasks, root)), executor.batch():
                jobs += [executor.submit(worker) for worker in array]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"--cluster slurm: sbatch refused the job: {sbatch_error(error)}") from None
    return jobs


def sbatch_text(spec: SweepConfig, profile: Profile, workers: int, root: Path) -> str:
    """The sbatch file, as Submitit would write it; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _logs(spec, root)
    python = profile.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    tasks = profile.workers_a_job(spec.runs_per_gpu)
    jobs = -(-workers // tasks)
    parameters = profile.submitit_parameters(jobs, tasks)
    return _make_sbatch_string(command, folder, job_name=spec.name, map_count=jobs, **parameters)


def _logs(spec: SweepConfig, root: Path) -> Path:
    return SweepDirectory(root.absolute() / spec.name).logs


def check_root(root: Path) -> None:
    """Refuse a root whose name Slurm would change in the names of log files. Raises UserError."""
    found = _REPLACED.search(str(root.absolute()))
    if found:
        raise UserError(
            f"--root {str(root.absolute())!r}: Slurm replaces {found[0]!r} in the names of log files "
            "(legal: a folder without a backslash and without % before a digit, a letter of AaJjNnstuxb or another %)"
        )


def launch_notes(spec: SweepConfig, profile: Profile, root: Path) -> list[str]:
    """What a launch should know of its jobs: their time for work, their Python, what the environment adds."""
    whole = profile.work_s + profile.signal_delay_s
    notes = [
        f"Slurm: of each job's {_span(whole)}, {_span(profile.work_s)} are for work: {profile.signal_delay_s} s before "
        "the end, or up to a minute earlier, its worker is warned, writes a checkpoint and is requeued"
    ]
    activates = next((line for line in profile.setup if re.search(r"\bactivate\b", line)), None)
    if activates and profile.python is None:
        notes.append(
            f"Slurm: setup: {activates!r} does not change which Python runs the workers: {sys.executable}; "
            "the profile's key python does"
        )
    return notes + job_environment(sbatch_text(spec, profile, 1, root), os.environ).in_words()


def _span(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    parts = {"h": hours, "min": minutes, "s": seconds % 60}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)


#: Seconds to wait for Slurm's controller, which does not answer during a restart.
ANSWER_S = 10.0
NO_ANSWER = "Slurm does not answer"


class SlurmError(Exception):
    """A command of Slurm failed, is not installed, or got no answer. The message is its last line of output."""


def ask(command: Sequence[str], timeout_s: float = ANSWER_S) -> str:
    """The output of one of Slurm's commands. Raises SlurmError."""
    # A user's SQUEUE_STATES or SCANCEL_INTERACTIVE would change what is asked.
    own = tuple(f"{name.upper()}_" for name in ("squeue", "sinfo", "scancel"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=timeout_s, env=environment
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        written = getattr(error, "stderr", None) or str(error)
        text = written.decode(errors="replace") if isinstance(written, bytes) else written
        raise SlurmError((text.strip().splitlines() or [str(error)])[-1]) from None


def slurm_queue() -> dict[str, tuple[str, str]] | None:
    """The state and reason of each of this user's jobs by `squeue`; None when Slurm does not answer."""
    try:
        answer = ask(["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%r"])
    except SlurmError:
        return None
    lines = (line.strip().split("|", 2) for line in answer.splitlines())
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}


def is_preempted() -> bool:
    """Whether Slurm is preempting this job, by what scontrol shows."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        answer = ask(["scontrol", "show", "job", "--oneliner", job], timeout_s=2)
    except SlurmError:
        return False
    match = re.search(r"\bPreemptTime=(\S+)", answer)
    return match is not None and match[1] not in ("None", "N/A")


def sbatch_error(error: Exception) -> str:
    """The reason that sbatch gave, without Submitit's traceback around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if "sbatch" in line or "slurm" in line.lower()]
    reasons = [line for line in reasons if "--help" not in line]  # of sbatch, after the reason
    return (reasons or lines or ["no reason given"])[-1]


def check_slurm(profile: Profile) -> None:
    """Raises UserError where Slurm cannot take the job: no sbatch, no answer, no such partition."""
    if shutil.which("sbatch") is None:
        raise UserError("--cluster slurm: sbatch is not on this machine; log in to the cluster, or use --cluster local")
    try:
        partitions = sorted(set(ask(["sinfo", "--noheader", "--format=%R"], timeout_s=15).split()))
    except SlurmError as error:
        raise UserError(
            f"--cluster slurm: Slurm's controller does not answer ({error}); `sinfo` shows when it is back, or use "
            "--cluster local"
        ) from None
    for name in (profile.partition or "").split(","):
        if name and name not in partitions:
            raise unknown("partition", name, partitions)
