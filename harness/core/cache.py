"""The cache folder: decoded images and compiled code."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$HARNESS_CACHE`, or ~/.cache/oscillation-harness. Files there may be deleted at any time.

    Raises RuntimeError where there is no home folder.
    """
    chosen = os.environ.get("HARNESS_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "oscillation-harness"
