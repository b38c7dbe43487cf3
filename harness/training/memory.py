"""Memory of a training on a CPU."""

import ctypes
import os
from functools import cache

#: From glibc's malloc.h, and the largest size that both are set to: tensors beyond it go back to the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _SIZE = -1, -3, 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed tensors for the next ones; whether it does now.

    It would give large ones back, and get them again page by page in each step: 5 % of a ResNet-18's step, and a sixth
    of ViT-Tiny's (batches of 128, two cores). The process holds its peak until it ends. Settings of the environment
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) win; other C libraries stay as they are.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(set_option(option, _SIZE) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
