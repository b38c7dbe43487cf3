"""Where a worker runs: its slot on this machine or its task of a Slurm job, its GPU, its threads, its disk.

A local slot is a GPU's share (`gpu2.0`) or a CPU's (`cpu0`), held through a file lock: however many workers are
started, by whatever launches, no two of a sweep share a slot, and a killed worker frees its own.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.errors import UserError
from harness.record import RunDirectory, is_running, read_status

#: What `check_disk` tries to write: more than the rest of a block, less than matters.
_PROBE_BYTES = 1 << 17


@dataclass(frozen=True)
class Place:
    """A worker's place. free: False when every slot was taken. suffix: of the name of one of several Slurm tasks."""

    free: bool = True
    slot: str | None = None
    gpu: str | None = None
    threads: int | None = None
    rank: int = 0
    tasks: int = 1

    @property
    def suffix(self) -> str:
        """`.1` for the second of several tasks."""
        return f".{self.rank}" if self.tasks > 1 else ""

    @property
    def shown(self) -> dict[str, Any]:
        """What status.json says of it."""
        return {"slot": self.slot, "gpu": self.gpu}


@contextmanager
def take(folder: Path, slots: tuple[str, ...], runs_per_gpu: int) -> Iterator[Place]:
    """Take the first free slot, or this Slurm task's share of its job; binds to the GPU through the environment."""
    if not slots:
        yield _slurm_task(runs_per_gpu)
        return
    here = folder / "slots" / socket.gethostname()
    here.mkdir(parents=True, exist_ok=True)
    for slot in slots:
        lock = FileLock(here / f"{slot}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield _local(slot)
        finally:
            lock.release()
        return
    yield Place(free=False)


def _local(slot: str) -> Place:
    gpu = slot.removeprefix("gpu").rpartition(".")[0] if slot.startswith("gpu") else None
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return Place(slot=slot, gpu=gpu)


def _slurm_task(runs_per_gpu: int) -> Place:
    """Tasks of a job share its GPUs evenly, `runs_per_gpu` a GPU."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = int(cpus) if cpus else None
    rank, tasks = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    bound = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if not bound or "SLURM_JOB_ID" not in os.environ:
        return Place(threads=threads, rank=rank, tasks=tasks)
    if tasks > 1:
        own = os.environ["CUDA_VISIBLE_DEVICES"] = bound[rank // runs_per_gpu % len(bound)]
        return Place(gpu=own, threads=threads, rank=rank, tasks=tasks)
    return Place(gpu=",".join(bound), threads=threads)


def slot_names(gpus: list[str], runs_per_gpu: int, cpus: int) -> tuple[str, ...]:
    """The slots of this machine: every GPU's shares, first one of each, or one a CPU core."""
    shares = [f"gpu{gpu}.{share}" for share in range(runs_per_gpu) for gpu in gpus]
    return tuple(shares or [f"cpu{core}" for core in range(cpus)])


def job_id() -> str | None:
    """The job this process runs in, as `squeue` names it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")


def named() -> str:
    """`host node7, job 812_3`."""
    job = job_id()
    return f"host {socket.gethostname()}" + (f", job {job}" if job else "")


def wait_for_siblings(folder: Path, name: str, where: Place) -> None:
    """Let the first task of a job outlive the others: only it can have the job requeued."""
    if where.rank or where.tasks == 1:
        return
    others = [RunDirectory(folder / "workers" / f"{name}.{rank}") for rank in range(1, where.tasks)]
    while any(is_running(read_status(other)) for other in others):
        time.sleep(1)


def check_disk(folder: Path, failure: BaseException | None = None) -> None:
    """Raises UserError when nothing more can be written to a sweep's folder, such as when the disk is full.

    failure: what made somebody ask. It may tell more than a small file that still fits.
    """
    error = failure if _is_of_the_disk(failure) else _disk_error(folder)
    if error is not None:
        raise UserError(
            f"nothing more can be written to {folder} ({error}); mend that and launch again: what is finished stays, "
            "and the runs that were under way go on from their checkpoints"
        ) from error


def _is_of_the_disk(failure: BaseException | None) -> bool:
    if isinstance(failure, OSError):
        return failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return failure is not None and os.strerror(errno.ENOSPC) in str(failure)  # safetensors has errors of its own


def _disk_error(folder: Path) -> OSError | None:
    probe = folder / f".probe.{socket.gethostname()}.{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
