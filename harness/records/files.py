"""Atomic files: written aside, flushed to disk and renamed. And the check for a full disk."""

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from harness.core.errors import UserError


@contextmanager
def written_aside(path: Path, flushed: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well.

    flushed: flush to disk before the rename, so that a crash of the machine cannot lose it. The file may be read by
    whom the umask lets, whatever the block gives it: safetensors writes files that only their owner may read.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode & 0o777  # what the umask gives; reading the umask itself would change it
        yield aside
        with open(aside, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o777 != mode:
                os.fchmod(file.fileno(), mode)
            if flushed:
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def make_folder_of(path: Path) -> None:
    """Make the folder of a file that a user named. Raises UserError where there can be none, and for a folder."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder {path.parent} cannot be made: {error.strerror}") from None


def no_safetensors(path: Path, error: object) -> str:
    """What to say of a file that the library does not take: what it is instead, where its first bytes tell."""
    with suppress(OSError), open(path, "rb") as file:
        first = file.read(4)
        if first == b"PK\x03\x04" or first[:1] == b"\x80":  # a zip archive, or a pickle
            return "is no safetensors file; it looks like a file of torch.save"
    return f"is no safetensors file, or is cut or damaged ({error})"


def write_json(path: Path, value: Any, flushed: bool = True) -> None:
    """Write a JSON file atomically. Raises ValueError for NaN, which is not JSON."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with written_aside(path, flushed) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with written_aside(path) as aside:
        aside.write_bytes(content)


def read_json(path: Traversable) -> Any:
    """The value of a JSON file, on disk or in an archive; None when it is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


#: What `check_disk` tries to write: more than one block of a file system.
_PROBE_BYTES = 1 << 17


def check_disk(folder: Path, failure: BaseException | None = None) -> None:
    """Raises UserError when nothing more can be written to a sweep's folder, such as when the disk is full.

    failure: the error that led here. It may say more than a small file that can still be written.
    """
    error = failure if _is_of_the_disk(failure) else _disk_error(folder)
    if error is not None:
        raise UserError(
            f"nothing more can be written to {folder} ({error}); make room, then launch again: what is finished stays, "
            "and the runs that were under way go on from their checkpoints"
        ) from error


def _is_of_the_disk(failure: BaseException | None) -> bool:
    if isinstance(failure, OSError):
        return failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return failure is not None and os.strerror(errno.ENOSPC) in str(failure)  # safetensors has errors of its own


def _disk_error(folder: Path) -> OSError | None:
    probe = folder / f".probe.{socket.gethostname()}.{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
