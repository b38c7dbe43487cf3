"""The environment that sbatch runs in. Its variables win over the sbatch file, and jobs inherit them."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

#: How Slurm's programs find the controller.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
#: SBATCH_<name> of options with another name than the variable's.
_OPTION = {
    "ARRAY_INX": "array", "TIMELIMIT": "time", "MEM_PER_NODE": "mem", "REQ_SWITCH": "switches",
    "CPU_FREQ_REQ": "cpu-freq", "DEBUG": "verbose",
}  # fmt: skip
#: Options of which naming one says no to the others. GPUs, CPUs and waiting are always the harness's own choice.
_MEMORY, _REQUEUE = {"mem", "mem-per-cpu", "mem-per-gpu"}, {"requeue", "no-requeue"}
_ALWAYS = {"gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "cpus-per-gpu", "wait"}


@dataclass(frozen=True)
class JobEnvironment:
    """The variables for sbatch, those of SBATCH_* that it takes over, and those that the profile overrules."""

    variables: Mapping[str, str]
    taken: Mapping[str, str]
    overruled: Mapping[str, str]

    def in_words(self) -> list[str]:
        """A sentence on those taken over, and one on those overruled; none where there are none."""
        texts = (
            (self.taken, "from the environment, since the profile does not name it"),
            (self.overruled, "in the environment is ignored; the profile says something else"),
        )
        return [
            f"Slurm: {', '.join(f'{name}={value}' for name, value in sorted(found.items()))}: {text}"
            for found, text in texts
            if found
        ]


def job_environment(script: str, environment: Mapping[str, str]) -> JobEnvironment:
    """What sbatch may see of an environment, so that the options of the sbatch file count. script: that file's text.

    Left out: SBATCH_* of options that the file has, and all that an outer Slurm job set (SLURM_*, SRUN_*).
    """
    named = set(re.findall(r"(?m)^#SBATCH --([a-z-]+)", script)) - {"wckey"}  # that one is Submitit's own idea
    named |= _ALWAYS
    for group in (_MEMORY, _REQUEUE):
        named |= group if named & group else set()
    variables: dict[str, str] = {}
    taken: dict[str, str] = {}
    overruled: dict[str, str] = {}
    for name, value in environment.items():
        if name.startswith("SBATCH_"):
            chosen = overruled if _is_named(name.removeprefix("SBATCH_"), value, named) else taken
            chosen[name] = value
        if name in _KEPT or (name not in overruled and not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))):
            variables[name] = value
    return JobEnvironment(variables, taken, overruled)


def _is_named(variable: str, value: str, named: Collection[str]) -> bool:
    option = _OPTION.get(variable, variable.lower().replace("_", "-"))
    return option in named or (option == "gres" and "gpu" in value)


@contextmanager
def environment_for_jobs(script: str) -> Iterator[None]:
    """Run sbatch, which Submitit starts, in that environment."""
    before = dict(os.environ)
    wanted = job_environment(script, before).variables
    for name in before.keys() - wanted.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)
