"""Where the images of a data set are kept: in memory of the device or of the host, or on disk."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.data._mapped import gib

if TYPE_CHECKING:
    import torch

    from harness.data._config import DataConfig
    from harness.data._raw import Raw

#: The largest part of the host's free memory that images may take: they are there twice while splits are drawn, and
#: other workers of the sweep have theirs.
OF_HOST = 1 / 4
#: The same of the device's free memory, which networks and their activations need.
OF_DEVICE = 1 / 2
#: What was said in this process; how much is free differs from time to time.
_said: set[str] = set()


def in_memory(config: "DataConfig", size: int) -> bool:
    """Whether images of `size` bytes are decoded into memory; else into a file of the cache that is mapped."""
    return config.residency != "disk" and (config.residency != "auto" or size <= OF_HOST * free_host_memory())


def place(config: "DataConfig", raw: "Raw", device: "torch.device") -> Literal["device", "host", "disk"]:
    """Where a run on a device keeps the images that were read.

    Where `auto` chooses another place than the device's memory, a warning says so, once a process.
    """
    import torch

    if config.residency != "auto":
        return config.residency
    free = free_host_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    fits = not raw.mapped if device.type == "cpu" else raw.size <= OF_DEVICE * free
    if fits:
        return "device"
    where = "on disk" if raw.mapped else "in memory of the host"
    what = f"data.residency: auto keeps images {where}: they take {gib(raw.size)}"
    if what not in _said:
        _said.add(what)
        warnings.warn(f"{what}, and {gib(free)} are free on {device}", stacklevel=2)
    return "disk" if raw.mapped else "host"


def free_host_memory() -> int:
    """Bytes that this process may still take: what Linux says is available, within the limit of its control group.

    Where Linux does not tell: so many that everything fits.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 2**62
    return min([available, *_left_to_groups()])


def _left_to_groups() -> list[int]:
    """What is left of the memory limits of this process' control groups, as Slurm and containers set them."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        top, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        if controllers:  # version 1
            top, names = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if controllers and "memory" not in controllers.split(","):
            continue
        group = top / path.strip("/")
        for each in (group, *group.parents):
            if top in (each, *each.parents) and (left := _left(each, *names)) is not None:
                found.append(left)
    return found


def _left(group: Path, limit: str, used: str) -> int | None:
    try:
        most, now = ((group / name).read_text(encoding="ascii").strip() for name in (limit, used))
        return max(0, int(most) - int(now)) if most.isdigit() else None
    except (OSError, ValueError):
        return None
