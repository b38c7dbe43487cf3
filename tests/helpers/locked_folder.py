"""A folder that may not be entered, for root too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """In the block, the folder may be neither entered nor listed. Root, who may do all, is nobody meanwhile."""
    was_root = os.geteuid() == 0
    folder.chmod(0)
    if was_root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o700)
