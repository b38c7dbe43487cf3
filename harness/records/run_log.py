"""A run's own log: a copy of what Python prints while the run is under way."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOBase
from pathlib import Path
from typing import TextIO


class _Copy(TextIOBase):
    """Writes to a stream and to a log; errors of the log are ignored."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        _try_write(self._log, text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


@contextmanager
def logged(path: Path, heading: str) -> Iterator[Callable[[str], None]]:
    """Append what is printed in the block to a file, under a heading with the time.

    Yields a function that writes a line to the log only.
    """
    log = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115  (closing may fail too)
    try:
        _try_write(log, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {heading}\n")
        with redirect_stdout(_Copy(sys.stdout, log)), redirect_stderr(_Copy(sys.stderr, log)):
            yield lambda line: _try_write(log, line + "\n")
    finally:
        with suppress(OSError):
            log.close()


def _try_write(log: TextIO, text: str) -> None:
    with suppress(OSError):  # a full disk: the run itself will say so
        log.write(text)
