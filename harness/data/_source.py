"""Image files in a folder or in a zip file, under the same names. Free of torch."""

import contextlib
import hashlib
import os
import zipfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.core.errors import UserError

#: Files with another ending are not images and are passed over.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
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

    def fingerprint(self, names: Sequence[str]) -> str:
        """A text that changes whenever one of these files does."""


@dataclass(frozen=True)
class LabelledFiles:
    """Images of the splits `train`, `test` and, where it is there, `val`, each with its label; class names by label."""

    source: Source
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]


def labelled(source: Source, folders: Sequence[str]) -> list[tuple[str, int]]:
    """The images in the folder of each class, label by label. Raises UserError for a folder without any."""
    images = []
    for label, folder in enumerate(folders):
        found = source.names(folder)
        if not found:
            raise UserError(
                f"data.root: {source.show(folder)} holds no images (files ending in {' '.join(IMAGE_ENDINGS)})"
            )
        images += [(image, label) for image in found]
    return images


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


class Folder:
    """A `Source` in the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, top: str = ".") -> list[str]:
        """Names of the folders directly inside `top`, sorted; hidden ones are passed over."""
        with os.scandir(self.root / top) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")

    def names(self, top: str) -> list[str]:
        found = []
        for folder, inside, files in os.walk(self.root / top, followlinks=True):
            inside[:] = [name for name in inside if name[0] != "."]
            relative = Path(folder).relative_to(self.root).as_posix()
            found += [f"{relative}/{name}" for name in files if is_image(name) and name[0] != "."]
        return sorted(found)

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    def show(self, name: str) -> str:
        return self._path(name)

    def fingerprint(self, names: Sequence[str]) -> str:
        """From paths, sizes and times, and the content of a few files.

        The root does not count: a copy on a node's own disk finds the same cache. Content does, as files
        unpacked by some tools all carry one time, and uncompressed images all have one size.
        """
        digest = hashlib.sha256()
        for name in names:
            with contextlib.suppress(OSError):  # reading the file will say what is wrong with it
                stat = os.stat(self._path(name))
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        for name in names[:: max(1, len(names) // SAMPLED_FILES)]:
            with contextlib.suppress(OSError):
                digest.update(hashlib.sha256(self.read(name)).digest())
        return digest.hexdigest()

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
        return f"{self.path}/{self.prefix}{name}"

    def fingerprint(self, names: Sequence[str]) -> str:
        """From the checksum of each file, which the zip file keeps."""
        lines = (f"{name}\0{self._zip.getinfo(self.prefix + name).CRC}\n" for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
