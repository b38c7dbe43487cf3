"""The largest nodes of a partition, by sinfo: whether a profile's job fits on one."""

import os
import re
from dataclasses import dataclass

from harness.cluster.profile import Profile
from harness.cluster.slurm import SlurmError, ask
from harness.core.errors import UserError
from harness.core.wording import counted

#: Partition (with `*` if it is the default), CPUs, memory in MB and generic resources of nodes that are alike.
_FORMAT = "%P|%c|%m|%G"
_GPUS = re.compile(r"(?:^|,)gpu(?::([^:,()]+))??:(\d+)(?=[(,]|$)")


@dataclass(frozen=True)
class Nodes:
    """What alike nodes of a partition have. gpus: numbers by type, "" where it is not told."""

    partition: str
    cpus: int
    memory_mb: int
    gpus: dict[str, int]

    def gpus_of(self, kind: str | None) -> int:
        """How many GPUs of a type, or of any, one of them has. Where types are not told, all count."""
        return sum(number for name, number in self.gpus.items() if kind is None or name in ("", kind))


def check_fits(profile: Profile, runs_per_gpu: int) -> None:
    """Raises UserError for a job that is larger than every node of its partition; not where sinfo does not tell.

    runs_per_gpu: the sweep's, for a profile that does not say.
    """
    nodes = _nodes_for(profile)
    if not nodes:
        return
    where = f"partition {', '.join(sorted({each.partition for each in nodes}))}"
    tasks = profile.workers_a_job(runs_per_gpu)
    cpus, memory_mb = max(each.cpus for each in nodes), max(each.memory_mb for each in nodes)
    gpus = max(each.gpus_of(profile.gpu_type) for each in nodes)
    found = []
    if profile.gpus > gpus:
        kind = f" of type {profile.gpu_type}" if profile.gpu_type else ""
        found.append(f"gpus: {profile.gpus}: no node of {where} has more than {gpus}{kind} (legal: 0 to {gpus})")
    if profile.cpus * tasks > cpus:
        of_all = f", {profile.cpus * tasks} for the {tasks} workers of a job" if tasks > 1 else ""
        legal = f"1 to {cpus // tasks}" if cpus >= tasks else f"none with {counted(tasks, 'worker')} a job"
        found.append(f"cpus: {profile.cpus}{of_all}: the largest node of {where} has {cpus} (legal: {legal})")
    if memory_mb > 1 and 1024 * (profile.memory_gb or 0) > memory_mb:  # 1: an administrator did not say
        largest = memory_mb // 1024
        found.append(
            f"memory_gb: {profile.memory_gb}: the largest node of {where} has {largest} (legal: 1 to {largest}, null)"
        )
    if found:
        raise UserError("--cluster slurm: no node can take the job: " + "; ".join(found))


def _nodes_for(profile: Profile) -> list[Nodes]:
    """The nodes of the partitions that a job goes to; none where that is not known."""
    if "clusters" in profile.sbatch or "SBATCH_CLUSTERS" in os.environ:  # sinfo tells of this one
        return []
    try:
        answer = ask(["sinfo", "--noheader", "--exact", f"--format={_FORMAT}"])
    except SlurmError:
        return []
    lines = [line.strip().split("|") for line in answer.splitlines()]
    parsed = [_nodes(*line) for line in lines if len(line) == 4]
    named = profile.partition or profile.sbatch.get("partition") or os.environ.get("SBATCH_PARTITION")
    wanted = str(named).split(",") if named else [each.partition for each in parsed if each.partition.endswith("*")]
    plain = {name.removesuffix("*") for name in wanted}
    return [
        Nodes(name, each.cpus, each.memory_mb, each.gpus)
        for each in parsed
        if (name := each.partition.removesuffix("*")) in plain
    ]


def _nodes(partition: str, cpus: str, memory_mb: str, resources: str) -> Nodes:
    gpus: dict[str, int] = {}
    for kind, number in _GPUS.findall(resources):
        gpus[kind] = gpus.get(kind, 0) + int(number)
    return Nodes(partition, _number(cpus), _number(memory_mb), gpus)


def _number(text: str) -> int:
    """`64`, or `64+` where nodes differ; a huge number for what is none, which refuses nothing."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 2**62
