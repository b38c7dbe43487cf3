"""Memory of a training on a CPU."""

import ctypes
import os
from functools import cache

#: From glibc's malloc.h, and the largest size that thresholds are set to: tensors beyond it go back to the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _SIZE = -1, -3, -4, 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed tensors for the next ones; whether it does now.

    It would give large ones back, and get them again page by page: up to a sixth of a training step, and a fifth of an
    evaluation of ViT-Tiny in batches of 256 (two cores). The process holds its peak until it ends. Settings of the
    environment (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) win; other C libraries stay as they are.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Before version 2.35 glibc refuses a threshold above 32 MiB; no tensor at all goes back to the system then.
    from_heap = set_option(_M_MMAP_THRESHOLD, _SIZE) or set_option(_M_MMAP_MAX, 0)
    return bool(from_heap and set_option(_M_TRIM_THRESHOLD, _SIZE))
