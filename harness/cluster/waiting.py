"""Workers that wait in Slurm's queue: whether they can start, and whether this launch would ask for the same."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cluster.profile import Profile
from harness.cluster.worker_info import WorkerInfo
from harness.core.errors import UserError
from harness.core.wording import counted

#: What Slurm's reasons mean that do not pass by themselves. Limits on all jobs together (AssocGrpCpuLimit) do pass,
#: and so does what depends on nodes that are down (ReqNodeNotAvail, PartitionNodeLimit).
_NEVER = {
    r"PartitionConfig": "no node of the partition has what the job asks for",
    r"BadConstraints": "no node has what the job asks for",
    r"PartitionTimeLimit": "the job asks for more time than its partition gives",
    r"InvalidAccount|AccountNotAllowed": "the job's account is not valid there",
    r"InvalidQOS|QOSNotAllowed": "the job's QOS is not valid there",
    r"(Assoc|QOS)Max\w+Per(Job|Node)\w*": "the job asks for more than its account or QOS allows one job",
    r"QOSMin\w+": "the job asks for less than its QOS wants",
    r"DependencyNeverSatisfied": "the job depends on one that failed",
}
#: The keys of a profile that say what a job asks for.
_ASKED = (
    *("partition", "account", "qos", "constraint", "time", "gpus", "gpu_type", "runs_per_gpu"),
    *("cpus", "memory_gb", "sbatch"),
)


def never_starts(reason: str | None) -> str | None:
    """What Slurm's reason for waiting means, where it does not pass by itself; None for any other reason."""
    return next((text for pattern, text in _NEVER.items() if re.fullmatch(pattern, reason or "")), None)


def asked(profile: Profile) -> dict[str, Any]:
    """What jobs of a profile ask for, as plain values, to be written down with their workers."""
    values = profile.model_dump(mode="json")
    return {key: values[key] for key in _ASKED}


def waiting(workers: Sequence[WorkerInfo]) -> list[WorkerInfo]:
    """Those whose job waits in Slurm's queue."""
    return [worker for worker in workers if worker.cluster == "slurm" and worker.state == "pending"]


def waiting_notes(workers: Sequence[WorkerInfo], profile: Profile, folder: Path) -> list[str]:
    """What a launch with a profile should know of the sweep's workers that wait.

    Raises UserError where none of them can ever start, and some ask for something else than this profile's jobs.
    """
    here, wait = asked(profile), waiting(workers)
    # An earlier version did not write down what its jobs ask for.
    others = [worker for worker in wait if worker.submitted.get("asked", here) != here]
    stuck = [worker for worker in wait if never_starts(worker.why)]
    way_out = f"`python -m harness.cancel {folder}`, then launch "
    if others:
        said = (
            f"{_in_queue(others)}, submitted with another profile ({_difference(others[0], here)}): {reasons(others)}"
        )
        if len(stuck) == len(wait):
            raise UserError(f"{folder}: {said}. They never start by themselves: {way_out}again")
        return [f"note: {said}. They count as workers of this launch; for jobs of this profile {way_out}again"]
    if stuck:
        said = f"{_in_queue(stuck)}: {reasons(stuck)}"
        return [f"note: {said}. They never start by themselves: {way_out}with another profile"]
    return []


def reasons(workers: Sequence[WorkerInfo]) -> str:
    """Slurm's reasons why workers wait, the most frequent first, with what they mean."""
    found = Counter("no reason yet" if worker.why in (None, "None") else str(worker.why) for worker in workers)
    return ", ".join(f"{why} ({meaning})" if (meaning := never_starts(why)) else why for why, _ in found.most_common())


def _in_queue(workers: Sequence[WorkerInfo]) -> str:
    return f"{counted(len(workers), 'worker')} {'waits' if len(workers) == 1 else 'wait'} in Slurm's queue"


def _difference(worker: WorkerInfo, here: dict[str, Any]) -> str:
    there = worker.submitted["asked"]
    differ = [key for key in here if there.get(key) != here[key]]
    return "; ".join(f"{key}: {_yaml(there.get(key))}, here {_yaml(here[key])}" for key in differ)


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)
