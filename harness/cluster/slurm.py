"""Slurm: profiles (see slurm/), the sbatch file, and its commands, all run by `ask`."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.core import yaml_file
from harness.core.config_base import StrictConfig
from harness.core.errors import UserError, unknown
from harness.core.validation import explain
from harness.records.sweep_directory import SweepDirectory
from harness.sweep.config import SweepConfig


class Profile(StrictConfig):
    """A job's resources. A job holds `runs_per_gpu` workers per GPU; the jobs of a launch form one array."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = Field("04:00:00", description="days-hours:minutes:seconds, hours:minutes:seconds, or minutes")
    gpus: int = Field(1, ge=0, le=16, description="of a job; each is a worker's own unless runs_per_gpu says more")
    runs_per_gpu: int | None = Field(None, ge=1, le=64, description="workers that share a GPU; None: the sweep's")
    cpus: int = Field(8, ge=1, le=1024, description="per worker")
    memory_gb: int = Field(32, ge=1, le=100_000, description="of a job")
    array_parallelism: int = Field(256, ge=1, description="jobs that may run at once")
    signal_delay_s: int = Field(90, ge=1, description="warning before the time limit, to write checkpoints")
    setup: tuple[str, ...] = Field((), description="shell lines before the worker, e.g. module load")
    sbatch: dict[str, Any] = Field(default_factory=dict, description="other sbatch options, without dashes")

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> str:
        text = str(value)  # `time: 90` is an int
        if _minutes(text) == 0:
            raise ValueError("a job needs some time (legal: 1 minute or more)")
        return text

    @model_validator(mode="after")
    def _shares_a_gpu(self) -> Self:
        if self.gpus == 0 and (self.runs_per_gpu or 1) > 1:
            raise ValueError(f"runs_per_gpu: {self.runs_per_gpu} runs share no GPU where gpus is 0")
        return self

    def workers_a_job(self, runs_per_gpu: int) -> int:
        """Workers in one job. runs_per_gpu: the sweep's, for a profile that does not say."""
        return self.gpus * (self.runs_per_gpu or runs_per_gpu) or 1

    def submitit_parameters(self, jobs: int, tasks: int = 1) -> dict[str, Any]:
        """The keyword arguments of Submitit's Slurm executor, for an array of jobs of so many workers each."""
        named = {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")}
        return {
            **{key: value for key, value in named.items() if value is not None},
            "time": _minutes(self.time),
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem": f"{self.memory_gb}GB",
            "nodes": 1,
            "ntasks_per_node": tasks,
            "array_parallelism": min(self.array_parallelism, jobs),
            "signal_delay_s": self.signal_delay_s,
            "setup": list(self.setup),
            # Clusters may forbid requeueing unless a job asks for it.
            "additional_parameters": {**({} if "no-requeue" in self.sbatch else {"requeue": True}), **self.sbatch},
        }


def _minutes(text: str) -> int:
    """Slurm's time formats, in whole minutes, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError("not a Slurm time (legal: minutes, hours:minutes:seconds, days-hours:minutes:seconds)")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[3] is None:
        return first
    if match[1] is None and match[4] is None:  # minutes:seconds
        return first + (second > 0)
    return (days * 24 + first) * 60 + second + (third > 0)


def read_profile(path: Path | None) -> Profile:
    """The profile in a file; the defaults without one. Raises UserError naming the key."""
    raw = {} if path is None else yaml_file.read(path)
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: " + explain(error, Profile)) from None


def sbatch_text(spec: SweepConfig, profile: Profile, workers: int, root: Path) -> str:
    """The sbatch file, as Submitit would write it; needs no Slurm."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = SweepDirectory(root.resolve() / spec.name).logs
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    tasks = profile.workers_a_job(spec.runs_per_gpu)
    jobs = -(-workers // tasks)
    parameters = profile.submitit_parameters(jobs, tasks)
    return _make_sbatch_string(command, folder, job_name=spec.name, map_count=jobs, **parameters)


#: Seconds to wait for Slurm's controller, which does not answer during a restart.
ANSWER_S = 10.0
NO_ANSWER = "Slurm does not answer"


class SlurmError(Exception):
    """A command of Slurm failed, is not installed, or got no answer. The message is its last line of output."""


def ask(command: Sequence[str], timeout_s: float = ANSWER_S) -> str:
    """The output of one of Slurm's commands. Raises SlurmError."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s).stdout
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
