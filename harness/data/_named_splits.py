"""Folders and files whose names say that they are a split, though no setting says so. Free of torch."""

import os
from collections.abc import Iterable
from pathlib import Path

from harness.core.errors import UserError

#: What people call the splits that are not for training; upper and lower case are alike.
NAMES = {"val": ("val", "valid", "validation", "dev"), "test": ("test",)}


def named_like(split: str, names: Iterable[str]) -> str | None:
    """The first of the names that is one of a split, or has it between dots: `val`, `wiki.valid.tokens`; else None."""
    return next((name for name in sorted(names) if {*name.lower().split(".")} & {*NAMES[split]}), None)


def folder_like(split: str, root: Path) -> str | None:
    """The name of the first folder directly below `root` that is called like a split; None for none."""
    try:
        with os.scandir(str(root)) as entries:
            return named_like(split, [entry.name for entry in entries if "." not in entry.name and entry.is_dir()])
    except OSError as error:
        raise UserError(f"data.root: {error.filename} cannot be read: {error.strerror}") from error
