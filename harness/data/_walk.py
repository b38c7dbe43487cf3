"""Finding image files below a folder: each image once, and no way around in circles. Free of torch."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness.core.errors import UserError

#: Files with another ending are not images and are passed over.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Folders that storage systems and other programs put everywhere, beside those whose names begin with a dot.
_SERVICE_FOLDERS = (
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "__macosx", "__pycache__",
)  # fmt: skip
_SHOWN = 3

Identity = tuple[int, int]  # device and inode


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def is_service(name: str) -> bool:
    """Whether a folder holds no images of the user's."""
    return name.startswith(".") or name.lower() in _SERVICE_FOLDERS


class Walk:
    """Walks below folders of one root, in turn, and remembers which images it has found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: dict[
            tuple[object, object], tuple[str, str]
        ] = {}  # an image -> the folder it was first found for, its name
        self._above: dict[str, Identity] = {}
        self._left_out: dict[str, None] = {}
        self._passed_over: Counter[str] = Counter()

    def images(self, top: str) -> list[str]:
        """Images at any depth below the folder `top`, sorted; one that several links lead to counts once.

        Raises UserError for a link that leads back up, an image that is below an earlier `top` as well (its label
        would be either, or it would be in two splits), and a folder that cannot be read.
        """
        path = os.path.join(self.root, top)
        if not os.path.isdir(path):
            return []
        return sorted(self._walk(top, top, self._folders_above(path), set()))

    def folders(self, top: str) -> list[str]:
        """Names of the folders directly inside `top`, sorted, without those of services."""
        found = [entry.name for entry in self._entries(top) if _is_dir(entry)]
        self._left_out |= dict.fromkeys(f"{top}/{name}" for name in found if is_service(name))
        return [name for name in found if not is_service(name)]

    def report(self) -> str:
        """What was left out and passed over so far; empty where nothing was."""
        parts = []
        if self._left_out:
            names = list(self._left_out)
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"hidden and service folders left out ({', '.join(names[:_SHOWN])}{more})")
        if self._passed_over:
            counts = sorted(self._passed_over.items(), key=lambda pair: (-pair[1], pair[0]))
            kinds = [f"{count} {ending or 'without an ending'}" for ending, count in counts]
            parts.append(f"files passed over by their ending ({', '.join(kinds)})")
        return "; ".join(parts)

    def _walk(self, top: str, folder: str, above: set[Identity], seen: set[Identity]) -> Iterator[str]:
        """above: the folders that this one lies in. seen: those walked through for this `top`."""
        path = os.path.join(self.root, folder)
        own = _identity(path)
        if own in above:
            target = os.path.realpath(path)
            raise UserError(
                f"data.root: {path} is a link to {target}, which it lies in itself: images would count several times; "
                "remove the link"
            )
        if own in seen:
            return
        seen.add(own)
        for entry in self._entries(folder):
            name = f"{folder}/{entry.name}"
            if _is_dir(entry):
                if is_service(entry.name):
                    self._left_out[name] = None
                else:
                    yield from self._walk(top, name, {*above, own}, seen)
            elif not entry.name.startswith("."):
                if not is_image(entry.name):
                    self._passed_over[os.path.splitext(entry.name)[1].lower()] += 1
                elif self._is_new(top, name, entry, own):
                    yield name

    def _is_new(self, top: str, name: str, entry: os.DirEntry[str], folder: Identity) -> bool:
        """Whether an image was not found before."""
        try:
            keys = self._keys(entry, folder)
        except OSError:
            return True  # reading the file will say what is wrong with it
        for key in keys:
            earlier_top, earlier = self._found.setdefault(key, (top, name))
            if earlier == name or not _same(os.path.join(self.root, earlier), entry.path):
                continue
            if earlier_top != top:
                raise UserError(
                    f"data.root: {os.path.join(self.root, earlier)} and {entry.path} are one file, by a link: an image "
                    "has one class and is in one split; remove one of them"
                )
            return False
        return True

    def _keys(self, entry: os.DirEntry[str], folder: Identity) -> list[tuple[object, object]]:
        """What equal files have in common: their place, and the inode; a plain file's cost no look at the disk."""
        if not entry.is_symlink():
            return [(folder, entry.name), (folder[0], entry.inode())]
        place, name = os.path.split(os.path.realpath(entry.path))
        return [(_identity(place), name)]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in a folder, sorted. Raises UserError where it cannot be read: its images would be missing."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"data.root: {error.filename} cannot be read: {error.strerror}") from error

    def _folders_above(self, path: str) -> set[Identity]:
        """The folders that a path goes through, by the names in it and by where links in it lead."""
        parents = {*map(str, Path(os.path.abspath(path)).parents), *map(str, Path(os.path.realpath(path)).parents)}
        for parent in parents - self._above.keys():
            self._above[parent] = _identity(parent)
        return {self._above[parent] for parent in parents}


def _identity(path: str) -> Identity:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _same(one: str, other: str) -> bool:
    """Asked only of files that a listing says are one: some network file systems number all files alike there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
