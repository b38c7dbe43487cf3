"""Memory that a step frees is there for the next one."""

import platform
import resource
from types import SimpleNamespace

import pytest
import torch

from harness.training.device import choose_device
from harness.training.memory import keep_freed_memory
from harness.training.sections import RuntimeConfig

MEGABYTES = 40  # more than glibc would ever keep by itself
PAGES = MEGABYTES * 2**20 // resource.getpagesize()


def pages_fetched(count: int) -> int:
    """Pages that the system had to hand out for as many tensors, one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(MEGABYTES * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_a_run_on_a_cpu_keeps_the_memory_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    keep_freed_memory.cache_clear()
    choose_device(RuntimeConfig(device="cpu"))
    assert keep_freed_memory()
    pages_fetched(12)  # until the heap has grown enough
    assert pages_fetched(4) < PAGES / 2


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1000000")
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()


def test_an_older_glibc_takes_every_tensor_from_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def mallopt(option: int, value: int) -> int:
        calls.append((option, value))
        return int(option != -3)

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory.cache_clear()
    assert keep_freed_memory()
    assert calls[1:] == [(-4, 0), (-1, 1 << 30)]
    keep_freed_memory.cache_clear()


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    keep_freed_memory.cache_clear()
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
