"""Seconds and memory of a piece of work."""

import ctypes
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

#: The largest peak of this process that `_restart` has wiped out.
_before_restart = 0


@dataclass
class Effort:
    """seconds: of wall time. peak_bytes: the most memory at a time beyond what was in use before; None: not known.

    Memory of a GPU where the work runs on one, else resident memory of the process, which only Linux tells.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None

    def with_part(self, part: "Effort") -> "Effort":
        """The effort of this work and of another part that came before it."""
        peaks = [each.peak_bytes for each in (self, part) if each.peak_bytes is not None]
        return Effort(self.seconds + part.seconds, max(peaks, default=None))


@contextmanager
def effort(device: torch.device) -> Iterator[Effort]:
    """Measure the block; what is yielded is filled in at its end."""
    found = Effort()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, known = torch.cuda.memory_allocated(device), True
    else:
        known = _restart()
        before = _status("VmRSS")
    begun = time.perf_counter()
    yield found
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    found.seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    found.peak_bytes = max(0, peak - before) if known else None


def process_peak_bytes() -> int:
    """The most resident memory that this process has had at a time."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    return max(_before_restart, kib * 1024)


def _restart() -> bool:
    """Have Linux count the process's peak anew, from what is in use now; whether it does."""
    global _before_restart
    highest = process_peak_bytes()
    try:
        _give_back_free_memory()
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    _before_restart = highest
    return True


def _give_back_free_memory() -> None:
    """Else what the process has freed and kept would hide the same amount of new memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes; 0 where there is none."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        lines = (line.split() for line in file)
        return next((int(words[1]) * 1024 for words in lines if words[0] == f"{field}:"), 0)
