"""The cache folder: decoded images and compiled code. One that cannot be used costs time; it never fails a run."""

import contextlib
import fnmatch
import os
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """`$HARNESS_CACHE`, or ~/.cache/oscillation-harness. Files there may be deleted at any time.

    Raises RuntimeError where there is no home folder.
    """
    chosen = os.environ.get("HARNESS_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "oscillation-harness"


def cached_files(pattern: str) -> list[Path]:
    """The files of the cache whose names match, sorted; none where there is no folder or it may not be read."""
    try:
        folder = cache_folder()
        return [folder / name for name in sorted(fnmatch.filter(os.listdir(folder), pattern))]
    except (OSError, RuntimeError):
        return []


def keep(name: str, write: Callable[[Path], object], otherwise: str) -> Path | None:
    """A new file of the cache, or None where it cannot be kept, with a warning that begins with `otherwise`.

    write: writes the file at the path that it is given. That file is renamed when it is whole, so processes that race
    each leave a whole file.
    """
    aside = None
    try:
        path = cache_folder() / name
        aside = path.with_name(f"{name}.{uuid.uuid4().hex}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.replace(path)
        return path
    except (OSError, RuntimeError) as error:  # no home folder; torch turns some failed writes into RuntimeError
        warnings.warn(f"{otherwise}: {error}", stacklevel=3)
        return None
    finally:
        if aside is not None:
            drop(aside)


def drop(path: Path) -> None:
    """Delete a file of the cache, if it is there and may be deleted."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
