"""Data sets that torchvision can fetch: where their files lie, what is missing, downloads, what is official."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import MissingDataError, UserError
from harness.data._config import DataConfig, looked_at, root_of

if TYPE_CHECKING:
    import numpy as np

    from harness.data.base import Raw, Split

    #: Images, uint8 (N, C, H, W), and class numbers, int64 (N,).
    Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Official:
    """The files of one data set; `check`, `shape` and `read` are what a data-set file defines.

    title: for messages. kind: the class in torchvision.datasets. folder: below `data.root`, which may be that folder
    itself. files: all that are needed; a file may be there compressed, with .gz. unpack: what to do by hand.
    image: (C, H, W). class_names: from the folder; None: of the official files, if they are still to be fetched.
    decode: the train and the test split of a folder. sums: MD5 sums by file name, of torchvision's class.
    fetch: puts the files below a root by that class, which verifies checksums.
    """

    title: str
    kind: str
    folder: str
    files: tuple[str, ...]
    unpack: str
    image: tuple[int, int, int]
    class_names: Callable[[Path | None], Sequence[str]]
    decode: Callable[[Path], "tuple[Arrays, Arrays]"]
    sums: Callable[[Any], Sequence[tuple[str, str]]]
    fetch: Callable[[Any, str], object] = lambda kind, root: kind(root, download=True)

    def check(self, config: DataConfig) -> None:
        """Raises UserError where a file is missing and `download` does not ask for it."""
        if config.root is None or not config.download:
            layout = f"a folder holding {self.folder or self.files[0]}{'/' if self.folder else ''}"
            root = root_of(config, f"{layout} ({self.unpack}; data.download: true fetches it there)")
            folder = self._in(root)
            if missing := self._missing(folder):
                raise MissingDataError(
                    f"data.root: {looked_at(folder)} lacks {', '.join(missing)}: {self.unpack} so that "
                    f"{folder / missing[0]} exists, or set data.download: true to fetch it"
                )

    def shape(self, config: DataConfig) -> tuple[tuple[int, int, int], int]:
        """(C, H, W) and the number of classes: what the official files have, where they are still to be fetched."""
        self.check(config)
        channels, height, width = self.image
        folder = self._in(config.root.expanduser()) if config.root is not None else Path()
        classes = len(self.class_names(None if self._missing(folder) else folder))
        return (channels, config.resize or height, config.resize or width), classes

    def read(self, config: DataConfig) -> "Raw":
        """All images, uint8, 255 means 1.0. Raises UserError: files missing, damaged or not to be fetched."""
        from harness.data._cache import cached
        from harness.data._source import Folder

        self.check(config)
        assert config.root is not None  # check refuses it
        root = config.root.expanduser()
        if config.download and self._missing(self._in(root)):
            self._download(root)
        folder = self._in(root)
        key = Folder(folder).fingerprint([_there(folder, name).name for name in self.files])
        return cached(config.name, key, config.resize, lambda: self._decoded(folder, config.resize))

    def _in(self, root: Path) -> Path:
        return root if _there(root, self.files[-1]).is_file() else root / self.folder

    def _missing(self, folder: Path) -> list[str]:
        return [name for name in self.files if not _there(folder, name).is_file()]

    def _download(self, root: Path) -> None:
        from torchvision import datasets

        kind = getattr(datasets, self.kind)
        try:
            self.fetch(kind, str(root))
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            what = f"data.download: {self.title} could not be fetched to {root}: {error}"
            raise UserError(f"{what}; fetch it elsewhere: {self.unpack}") from error

    def _decoded(self, folder: Path, resize: int | None) -> "Raw":
        from harness.data.base import Raw

        self._warn_unless_official(folder)
        names = tuple(self.class_names(folder))
        train, test = (_split(arrays, len(names), resize, folder) for arrays in self.decode(folder))
        return Raw(train=train, test=test, val=None, class_names=names, max_value=255)

    def _warn_unless_official(self, folder: Path) -> None:
        """Say, when files are first read, if they differ from the official ones; the record has their digest."""
        from torchvision import datasets
        from torchvision.datasets.utils import check_md5

        pairs = [(folder / name, md5) for name, md5 in self.sums(getattr(datasets, self.kind))]
        used = [(path, md5) for path, md5 in pairs if path.name.removesuffix(".gz") in self.files and path.is_file()]
        changed = [path.name for path, md5 in used if not check_md5(path, md5)]
        if changed:
            warnings.warn(
                f"{folder}: not the official {self.title} ({', '.join(changed)} differ); do not compare with papers",
                stacklevel=2,
            )


def _there(folder: Path, name: str) -> Path:
    """A file, or its compressed form where that alone is there."""
    plain, packed = folder / name, folder / f"{name}.gz"
    return packed if packed.is_file() and not plain.is_file() else plain


def contents(folder: Path, name: str) -> bytes:
    """The content of a file, decompressed. Raises OSError or EOFError."""
    import gzip

    path = _there(folder, name)
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _split(arrays: "Arrays", classes: int, resize: int | None, folder: Path) -> "Split":
    import torch

    from harness.data._images import resized
    from harness.data.base import Split

    images, labels = (torch.from_numpy(each) for each in arrays)
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"data.root: {folder} has labels outside 0 to {classes - 1}")
    return Split(images if resize is None else resized(images, resize), labels)
