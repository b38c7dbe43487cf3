"""Files that appear all at once or not at all: a figure that fails halfway leaves the last good set as it was."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from harness.core.errors import UserError

#: What the last complete set consisted of, so that what is no longer made does not lie about for ever.
_MANIFEST = "made.json"


#: Processors' vector units differ in the last digits of a logarithm, and the same records must give the same bytes.
_DIGITS = "%.12g"


def as_csv(frame: pd.DataFrame) -> str:
    """A frame as it is written, numbers to 12 digits."""
    return frame.to_csv(index=False, float_format=_DIGITS)


class Output:
    """A set of files that is being made in a folder of its own beside the one it will end up in."""

    def __init__(self, staging: Path) -> None:
        self.staging = staging
        self.names: list[str] = []

    def text(self, name: str, text: str) -> None:
        """Add a text file."""
        (self.staging / name).write_text(text, encoding="utf-8")
        self.names.append(name)

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        """Add a frame."""
        self.text(name, as_csv(frame))

    def json(self, name: str, content: Any) -> None:
        """Add plain values."""
        self.text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def figure(self, stem: str, figure: Figure, subject: str) -> None:
        """Add `stem`.pdf and .png, without the date that would make two runs differ."""
        draw = figure.draw
        for suffix, metadata in (
            (".png", {"Description": subject}),
            (".pdf", {"CreationDate": None, "Subject": subject}),
        ):
            figure.draw = partial(_draw_once, figure, draw, count())  # type: ignore[method-assign]
            figure.savefig(self.staging / (stem + suffix), format=suffix[1:], metadata=metadata)
            self.names.append(stem + suffix)
            figure.set_layout_engine("none")  # what was found for the first file serves the second
        del figure.draw

    def read(self, name: str) -> bytes:
        """A file added before."""
        return (self.staging / name).read_bytes()


def _draw_once(
    figure: Figure, draw: Callable[[RendererBase], None], calls: Iterator[int], renderer: RendererBase
) -> None:
    """In place of `figure.draw`, which `savefig` calls twice where there is a layout engine: first for its sake alone.

    calls: counts the calls of one `savefig`.
    """
    engine = figure.get_layout_engine()
    if next(calls) == 0 and engine is not None:
        engine.execute(figure)
    else:
        draw(renderer)


@contextmanager
def output(folder: Path, complete: bool = True) -> Iterator[Output]:
    """Files added in the block are put into `folder` when it ends well.

    complete: the block makes all that belongs there, and what an earlier one made beyond that is removed.
    Raises UserError where the folder cannot be made.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    _remove_abandoned(folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made or written to: {error.strerror}") from error
    try:
        made = Output(staging)
        yield made
        folder.mkdir(exist_ok=True)
        if complete:
            made.json(_MANIFEST, sorted(made.names))
            for name in _made_before(folder) - set(made.names):
                (folder / name).unlink(missing_ok=True)
        for name in made.names:
            (staging / name).replace(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed left beside the folder."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        pid = left.name.rpartition(".")[2]
        if left.is_dir() and pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _made_before(folder: Path) -> set[str]:
    try:
        names = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    # Names only: a path in a damaged manifest must not reach beyond the folder.
    return {name for name in names if isinstance(name, str) and Path(name).name == name}
