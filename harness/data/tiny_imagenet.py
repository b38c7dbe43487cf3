"""Tiny-ImageNet: 200 classes of 500 training images, 64x64 RGB, from the official layout or its zip file.

The official test images have no labels. So, as everybody does, the official *val* (10000 images, labelled) is
our `test` split, and our validation split is carved from train.
Source: Stanford CS231N, http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.errors import MissingDataError, UserError
from harness.data._config import FilesConfig, looked_at, refuse_download, root_of
from harness.data._source import Archive, Folder, LabelledFiles, Source, labelled

if TYPE_CHECKING:
    from harness.data.base import Raw

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
LAYOUT = f"a folder holding {FOLDER}/ or {FOLDER}.zip, or either itself ({URL})"
CLASSES_FILE, WORDS_FILE, TEST_FILE = "wnids.txt", "words.txt", "val/val_annotations.txt"


class Config(FilesConfig):
    """`root` holds `tiny-imagenet-200/` or `tiny-imagenet-200.zip`, or is either of them."""

    name: Literal["tiny_imagenet"] = "tiny_imagenet"


def check(config: Config) -> None:
    """Raises UserError: nothing there, a file missing, a class without images, an annotation of no image; none to hold
    out."""
    _scan(config).check_held_out(config.val_fraction)


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, H, W), of the first image, and the number of classes."""
    from harness.data._images import first_shape

    source = _source(root_of(config, LAYOUT))
    classes = sorted(_text(source, CLASSES_FILE).split())
    return first_shape(source, [f"train/{name}/images" for name in classes], config), len(classes)


def read(config: Config) -> "Raw":
    """uint8 (N, 3, 64, 64), 255 means 1.0. Raises UserError like `check`, and for a damaged image."""
    from harness.data._images import read_labelled

    return read_labelled(config, _scan(config), (CLASSES_FILE, WORDS_FILE, TEST_FILE))


def _scan(config: Config) -> LabelledFiles:
    """Labels number the classes by sorted WordNet id."""
    refuse_download(config, f"put {LAYOUT} at data.root")
    source = _source(root_of(config, LAYOUT))
    classes = sorted(_text(source, CLASSES_FILE).split())
    if not classes:
        raise UserError(f"data.root: {source.show(CLASSES_FILE)} names no class")
    train = labelled(source, [f"train/{name}/images" for name in classes])
    words = dict(line.partition("\t")[::2] for line in _text(source, WORDS_FILE).splitlines())
    class_names = tuple(words.get(name, name).split(",")[0].strip() for name in classes)
    return LabelledFiles(source, class_names, {"train": train, "test": _test(source, classes)})


def _source(root: Path) -> Source:
    """Where `root` has the files: in a folder or a zip file, itself or inside it."""
    for folder in (root / FOLDER, root):
        if (folder / CLASSES_FILE).is_file():
            return Folder(folder)
    for path in (root / f"{FOLDER}.zip", root):
        if path.is_file():
            return Archive(path, FOLDER)
    where = f"{root / FOLDER} or in {looked_at(root)}"
    raise MissingDataError(f"data.root: no {CLASSES_FILE} in {where}: put {LAYOUT} there")


def _text(source: Source, name: str) -> str:
    try:
        return source.read(name).decode()
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"data.root: cannot read {source.show(name)} ({error}); {URL} has it") from error


def _test(source: Source, classes: list[str]) -> list[tuple[str, int]]:
    """Images of the official val folder and their labels, from lines `file, class, box` split by tabs."""
    numbers = {name: label for label, name in enumerate(classes)}
    present = set(source.names("val/images"))
    test = []
    for number, line in enumerate(_text(source, TEST_FILE).splitlines(), start=1):
        file, _, rest = line.partition("\t")
        image, label = f"val/images/{file}", numbers.get(rest.partition("\t")[0].strip())
        where = f"data.root: {source.show(TEST_FILE)} line {number}"
        if label is None:
            raise UserError(f"{where} names no class of {CLASSES_FILE}: {line[:80]!r}")
        if image not in present:
            raise UserError(f"{where} names an image that is missing: {source.show(image)}")
        test.append((image, label))
    if not test:
        raise UserError(f"data.root: {source.show(TEST_FILE)} names no images")
    return test
