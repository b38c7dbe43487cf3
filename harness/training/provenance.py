"""What a record says about where its numbers come from. Nothing secret."""

import platform
import resource
import statistics
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import NUMERICS_VERSION
from harness.records.code_version import code_version

if TYPE_CHECKING:
    from harness.training.session import Session


_PACKAGES = ("torch", "torchvision", "timm", "numpy", "optuna", "submitit", "wandb")


def describe(session: "Session", started: float) -> dict[str, Any]:
    """The provenance of a run that began at `started` (seconds since the epoch)."""
    cuda = session.device.type == "cuda"
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    return {
        "git": code_version(),
        "numerics_version": NUMERICS_VERSION,
        "python": platform.python_version(),
        "packages": _versions(),
        "device": torch.cuda.get_device_name(session.device) if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "data_digest": session.dataset.digest,
        "wall_time_s": round(time.time() - started, 3),
        # Without the trackers, whose number differs from run to run.
        "step_ms": round(1e3 * statistics.median(steps), 4) if (steps := session.stopwatch.means) else None,
        "peak_memory_bytes": peak_kib * 1024,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(session.device) if cuda else 0,
    }


@cache
def _versions() -> dict[str, str]:
    present = {}
    for name in _PACKAGES:
        try:
            present[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return present


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
