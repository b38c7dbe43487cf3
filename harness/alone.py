"""One process a run: whoever else needs the same one waits, then finds its record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import Stopped


@contextmanager
def alone(folder: Path, asked_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of the run whose directory `folder` is. Raises Stopped while waiting, once asked to stop."""
    lock = FileLock(folder / "run.lock")
    while not asked_to_stop():
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            continue
    else:
        raise Stopped
    try:
        yield
    finally:
        lock.release()
