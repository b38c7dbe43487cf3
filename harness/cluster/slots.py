"""Where a worker runs: its slot on this machine or its task of a Slurm job, its GPU, its threads, its disk.

A local slot is a GPU's share (`gpu2.0`) or a CPU's (`cpu0`), held through a file lock: however many workers are
started, by whatever launches, no two of a sweep share a slot, and a killed worker frees its own.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from harness.core.wording import counted
from harness.records.heartbeat import is_running, read_status
from harness.records.sweep_directory import SweepDirectory


@dataclass(frozen=True)
class Slot:
    """Where a worker runs. free: False when every slot was taken. rank, tasks: of a Slurm job of several workers."""

    free: bool = True
    slot: str | None = None
    gpu: str | None = None
    threads: int | None = None
    rank: int = 0
    tasks: int = 1


@contextmanager
def take_slot(folder: Path, slots: tuple[str, ...], runs_per_gpu: int) -> Iterator[Slot]:
    """Take the first free slot, or this Slurm task's share of its job; binds to the GPU through the environment."""
    if not slots:
        yield _slurm_task(runs_per_gpu)
        return
    for slot in slots:
        lock = SweepDirectory(folder).slot_lock(socket.gethostname(), slot)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        gpu = slot.removeprefix("gpu").rpartition(".")[0] if slot.startswith("gpu") else None
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            yield Slot(slot=slot, gpu=gpu)
        finally:
            lock.release()
        return
    yield Slot(free=False)


def _slurm_task(runs_per_gpu: int) -> Slot:
    """This task's share of its job: tasks share the GPUs evenly, `runs_per_gpu` tasks per GPU."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = int(cpus) if cpus else None
    rank, tasks = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    bound = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if not bound or "SLURM_JOB_ID" not in os.environ:
        return Slot(threads=threads, rank=rank, tasks=tasks)
    if tasks > 1:
        own = os.environ["CUDA_VISIBLE_DEVICES"] = bound[rank // runs_per_gpu % len(bound)]
        return Slot(gpu=own, threads=threads, rank=rank, tasks=tasks)
    return Slot(gpu=",".join(bound), threads=threads)


def job_id() -> str | None:
    """The job this process runs in, as `squeue` names it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")


def host_and_job() -> str:
    """`host node7, job 812_3`."""
    job = job_id()
    return f"host {socket.gethostname()}" + (f", job {job}" if job else "")


def wait_for_siblings(folder: Path, name: str, where: Slot) -> None:
    """Let the first task of a job outlive the others: only it can have the job requeued."""
    if where.rank or where.tasks == 1:
        return
    others = [SweepDirectory(folder).worker(f"{name}.{rank}") for rank in range(1, where.tasks)]
    while any(is_running(read_status(other)) for other in others):
        time.sleep(1)


def local_slots(gpus: list[str] | None, runs_per_gpu: int) -> tuple[str, ...]:
    """The slots of this machine: every GPU's shares, first one of each GPU; without GPUs, one per CPU core.

    gpus: those to use, None for all that are visible.
    """
    gpus = visible_gpus() if gpus is None else gpus
    shares = [f"gpu{gpu}.{share}" for share in range(runs_per_gpu) for gpu in gpus]
    return tuple(shares or [f"cpu{core}" for core in range(cores())])


def visible_gpus() -> list[str]:
    """The CUDA devices that a local launch may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(answer.stdout.splitlines()) if line.startswith("GPU ")]


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_note(threads: int) -> str | None:
    """What to say where other work keeps far more cores busy than this process may use; None where it does not.

    threads: of each run. Says nothing where the system does not tell its load.
    """
    try:
        load = os.getloadavg()[0]  # over the last minute
    except (AttributeError, OSError):
        return None
    if load <= 1.5 * cores():  # the runs that have just ended count, too
        return None
    helps = "; --set runtime.threads=1 helps" if threads > 1 else ""
    here = f"load {load:.1f} on {counted(cores(), 'core')}"
    return f"note: {here}: other work slows runs, by several times where a run has more than one thread{helps}"
