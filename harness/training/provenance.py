"""The provenance in a record: code, packages, machine, data, time and memory. Nothing secret."""

import platform
import statistics
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness import NUMERICS_VERSION
from harness.core.outside import described
from harness.records.code_version import code_version
from harness.training.effort import process_peak_bytes
from harness.training.session import Session

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "optuna", "submitit", "wandb", "transformers")


def describe(session: Session, started: float) -> dict[str, Any]:
    """The provenance of a run that began at `started` (seconds since the epoch)."""
    cuda = session.device.type == "cuda"
    return {
        "git": code_version(),
        "numerics_version": NUMERICS_VERSION,
        "python": platform.python_version(),
        "packages": _versions(),
        "device": torch.cuda.get_device_name(session.device) if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "data_digest": session.dataset.digest,
        **({"components": found} if (found := described(session.config.model_dump(mode="json"))) else {}),
        "wall_time_s": round(time.time() - started, 3),
        # Without the trackers, whose number differs between runs.
        "step_ms": round(1e3 * statistics.median(steps), 4) if (steps := session.stopwatch.means) else None,
        "peak_memory_bytes": process_peak_bytes(),
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(session.device) if cuda else 0,
    }


@cache
def _versions() -> dict[str, str]:
    present = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            present[name] = metadata.version(name)
    return present


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
