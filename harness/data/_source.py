"""Image files in a folder or in a zip file, under the same names. Free of torch."""

import contextlib
import hashlib
import os
import zipfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.core.errors import UserError, printable
from harness.data._walk import IMAGE_ENDINGS, Walk, is_image

#: How many files, evenly spaced, a folder's fingerprint reads.
SAMPLED_FILES = 32


class Source(Protocol):
    """Files named by their path below a root, with forward slashes."""

    def names(self, top: str) -> list[str]:
        """Image files at any depth below the folder `top`, sorted; hidden ones are passed over."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises KeyError or OSError where there is none."""

    def show(self, name: str) -> str:
        """A file's full path, for messages."""

    def report(self) -> str:
        """What below the folders named so far does not count; empty where all does."""

    def fingerprint(self, names: Sequence[str]) -> str:
        """A text that changes whenever one of these files does."""

    @property
    def place(self) -> list[str]:
        """What `source_at` makes the same source of, in another process."""


def source_at(place: Sequence[str]) -> "Source":
    """A source by its `place`: a folder, or a zip file and the folder inside of it."""
    root, *inside = place
    return Archive(Path(root), inside[0]) if inside else Folder(Path(root))


@dataclass(frozen=True)
class LabelledFiles:
    """Images of the splits `train`, `test` and, where it is there, `val`, each with its label; class names by label."""

    source: Source
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]

    def check_held_out(self, val_fraction: float) -> None:
        """Raise UserError where no split is val and that part of train is no image: a class keeps its last one."""
        images = self.splits["train"]
        most = max(Counter(label for _, label in images).values())
        if "val" not in self.splits and (most < 2 or not round(len(images) * val_fraction)):
            raise none_held_out(val_fraction, len(images))


def none_held_out(val_fraction: float, count: int) -> UserError:
    """What to say where no image is left to validate. count: training images."""
    return UserError(f"data.val_fraction: {val_fraction} of {count} training images holds out no image")


def labelled(source: Source, folders: Sequence[str]) -> list[tuple[str, int]]:
    """The images in the folder of each class, label by label. Raises UserError for a folder without any."""
    images = []
    for label, folder in enumerate(folders):
        found = source.names(folder)
        if not found:
            rest = f"; so far {report}" if (report := source.report()) else ""
            raise UserError(
                f"data.root: {source.show(folder)} holds no images (files ending in {' '.join(IMAGE_ENDINGS)}){rest}"
            )
        images += [(image, label) for image in found]
    return images


class Folder:
    """A `Source` in the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._walk = Walk(root)

    def folders(self, top: str = ".") -> list[str]:
        """Names of the folders directly inside `top`, sorted; hidden ones and those of services are left out."""
        return self._walk.folders(top)

    def names(self, top: str) -> list[str]:
        """As of every source. Raises UserError like `Walk.images`."""
        return self._walk.images(top)

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    def show(self, name: str) -> str:
        return printable(self._path(name))

    def report(self) -> str:
        return printable(self._walk.report())

    def fingerprint(self, names: Sequence[str]) -> str:
        """From paths, sizes and times, and the content of a few files.

        The root does not count: a copy on a node's own disk finds the same cache. Content does, as files
        unpacked by some tools all carry one time, and uncompressed images all have one size.
        """
        digest = hashlib.sha256()
        for name in names:
            with contextlib.suppress(OSError):  # reading the file will say what is wrong with it
                stat = os.stat(self._path(name))
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        for name in names[:: max(1, len(names) // SAMPLED_FILES)]:
            with contextlib.suppress(OSError):
                digest.update(hashlib.sha256(self.read(name)).digest())
        return digest.hexdigest()

    @property
    def place(self) -> list[str]:
        return [str(self.root)]

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)  # as text: pathlib would cost seconds over 100000 files


class Archive:
    """A `Source` in a zip file whose files all lie below one folder `inside` of it.

    Raises UserError if the file is no whole zip file.
    """

    def __init__(self, path: Path, inside: str) -> None:
        self.path, self.prefix = path, f"{inside}/"
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"data.root: {path} is no complete zip file: {error}") from error
        self._names = sorted(
            name.removeprefix(self.prefix)
            for name in self._zip.namelist()
            if name.startswith(self.prefix) and is_image(name) and "/." not in name
        )

    def names(self, top: str) -> list[str]:
        start = bisect_left(self._names, f"{top}/")
        stop = bisect_left(self._names, f"{top}0")  # "0" is the character after "/"
        return self._names[start:stop]

    def read(self, name: str) -> bytes:
        return self._zip.read(self.prefix + name)

    def show(self, name: str) -> str:
        return printable(f"{self.path}/{self.prefix}{name}")

    def report(self) -> str:
        return ""

    def fingerprint(self, names: Sequence[str]) -> str:
        """From the checksum of each file, which the zip file keeps."""
        lines = (f"{name}\0{self._zip.getinfo(self.prefix + name).CRC}\n" for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def place(self) -> list[str]:
        return [str(self.path), self.prefix[:-1]]
