"""Slurm profiles (see slurm/): what a job asks for, checked, and as the arguments of Submitit's executor."""

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.core import yaml_file
from harness.core.config_base import StrictConfig
from harness.core.errors import UserError
from harness.core.validation import explain

#: Options of sbatch that the harness needs as it writes them, and the profile's key for those that have one.
_OWN = {
    "array": "array_parallelism", "cpus-per-task": "cpus", "signal": "signal_delay_s", "time": "time",
    "gpus": "gpus and gpu_type", "gpus-per-node": "gpus and gpu_type", "gpus-per-task": "gpus and gpu_type",
    "gpus-per-socket": "gpus and gpu_type", "cpus-per-gpu": "cpus",
    "nodes": "", "ntasks": "", "ntasks-per-node": "", "job-name": "", "output": "", "error": "", "open-mode": "",
    "wait": "", "wrap": "", "parsable": "", "test-only": "",
}  # fmt: skip
#: Options that a key of the profile writes unless it is null.
_BY_KEY = {"mem": "memory_gb", "mem-per-cpu": "memory_gb", "mem-per-gpu": "memory_gb"} | {
    key: key for key in ("partition", "account", "qos", "constraint")
}


class Profile(StrictConfig):
    """A job's resources. A job holds `runs_per_gpu` workers per GPU; the jobs of a launch form one array."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str = Field("04:00:00", description="days-hours:minutes:seconds, hours:minutes:seconds, or minutes")
    gpus: int = Field(1, ge=0, le=16, description="of a job; each is a worker's own unless runs_per_gpu says more")
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$", description="of the GPUs, as the cluster names it")
    runs_per_gpu: int | None = Field(None, ge=1, le=64, description="workers that share a GPU; None: the sweep's")
    cpus: int = Field(8, ge=1, le=1024, description="per worker")
    memory_gb: int | None = Field(32, ge=1, le=100_000, description="of a job; None: the cluster's default")
    array_parallelism: int = Field(256, ge=1, description="jobs that may run at once")
    signal_delay_s: int = Field(90, ge=1, description="warning before the time limit, to write checkpoints")
    setup: tuple[str, ...] = Field((), description="shell lines before the worker, e.g. module load")
    python: str | None = Field(
        None, min_length=1, description="shell command that starts Python in a job; None: the Python that launches"
    )
    sbatch: dict[str, Any] = Field(default_factory=dict, description="other sbatch options, without dashes")

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> str:
        text = str(value)  # `time: 90` is an int
        if _minutes(text) == 0:
            raise ValueError("a job needs some time (legal: 1 minute or more)")
        return text

    @field_validator("sbatch")
    @classmethod
    def _options(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Names in sbatch's spelling; options that are off left out."""
        for name, argument in value.items():
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no long option (legal: as in `man sbatch`, without dashes before it)")
            if isinstance(argument, list | dict):
                raise ValueError(f"{name}: {argument!r} is no value of an option (legal: a text, a number, true)")
            if name == "requeue":
                raise ValueError("requeue: the harness has its jobs requeued (legal: no-requeue: true, to forbid it)")
        return {name.replace("_", "-"): each for name, each in value.items() if each is not None and each is not False}

    @model_validator(mode="after")
    def _options_are_not_its_own(self) -> Self:
        for name, argument in self.sbatch.items():
            # sbatch takes `arr` for `array`.
            own = next((own for own in _OWN if own == name), next((own for own in _OWN if own.startswith(name)), None))
            # With gpus: 0 no GPU option is written: some clusters know GPUs only as gres.
            if name == "gres" and "gpu" in str(argument) and self.gpus > 0:
                own = "gpus"
            if own is not None:
                instead = f"; the profile's key is {_OWN[own]}" if _OWN[own] else ""
                raise ValueError(f"sbatch: {name}: the harness sets this option itself{instead}")
            key = _BY_KEY.get(name)
            if key is not None and getattr(self, key) is not None:
                raise ValueError(f"sbatch: {name}: {key}: {getattr(self, key)} asks for it already; set {key}: null")
        return self

    @model_validator(mode="after")
    def _gpus_are_there(self) -> Self:
        if self.gpus == 0 and (self.runs_per_gpu or 1) > 1:
            raise ValueError(f"runs_per_gpu: {self.runs_per_gpu} runs share no GPU where gpus is 0")
        if self.gpus == 0 and self.gpu_type is not None:
            raise ValueError(f"gpu_type: {self.gpu_type!r} of no GPU, since gpus is 0")
        return self

    @model_validator(mode="after")
    def _leaves_time_for_work(self) -> Self:
        if self.work_s <= 0:
            raise ValueError(
                f"signal_delay_s: a warning {self.signal_delay_s} s before the end leaves nothing of time: {self.time} "
                f"for work (legal: below {60 * _minutes(self.time)})"
            )
        return self

    @property
    def work_s(self) -> int:
        """Seconds of a job before its worker is warned of the time limit."""
        return 60 * _minutes(self.time) - self.signal_delay_s

    def workers_a_job(self, runs_per_gpu: int) -> int:
        """Workers in one job. runs_per_gpu: the sweep's, for a profile that does not say."""
        return self.gpus * (self.runs_per_gpu or runs_per_gpu) or 1

    def workers_at_once(self, runs_per_gpu: int) -> int:
        """Workers of all jobs that may run at once. runs_per_gpu: as above."""
        return self.array_parallelism * self.workers_a_job(runs_per_gpu)

    def submitit_parameters(self, jobs: int, tasks: int = 1) -> dict[str, Any]:
        """The keyword arguments of Submitit's Slurm executor, for an array of jobs of so many workers each."""
        optional = {
            **{key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")},
            "mem": None if self.memory_gb is None else f"{self.memory_gb}GB",
            # Some clusters refuse any GPU option in a partition without GPUs, even for 0 of them.
            "gpus_per_node": (f"{self.gpu_type}:{self.gpus}" if self.gpu_type else self.gpus) or None,
        }
        return {
            **{key: value for key, value in optional.items() if value is not None},
            "time": _minutes(self.time),
            "cpus_per_task": self.cpus,
            "nodes": 1,
            "ntasks_per_node": tasks,
            "array_parallelism": min(self.array_parallelism, jobs),
            "signal_delay_s": self.signal_delay_s,
            "setup": list(self.setup),
            # Where jobs do not inherit the environment (--export=NONE), workers still need that of their job.
            "srun_args": ["--export=ALL"],
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
