"""Your own images: `train/<class>/`, `test/<class>/` and, if you have it, `val/<class>/`.

Classes are folder names, sorted, the same in each split. Grey images become RGB, transparency is dropped.
Images may lie at any depth below a class folder, and links are followed. Hidden files do not count. Files of other
kinds, hidden folders and folders of services (`@eaDir`) are left out with a warning.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.errors import MissingDataError, UserError, printable
from harness.data._config import FilesConfig, looked_at, refuse_download, root_of
from harness.data._named_splits import folder_like
from harness.data._source import Folder, LabelledFiles, labelled

if TYPE_CHECKING:
    from harness.data.base import Raw

LAYOUT = "a folder with train/<class>/*.jpg (or .png, ...), test/<class>/ and, optionally, val/<class>/"


class Config(FilesConfig):
    """`root` holds train/ and test/. `resize` is needed where image sizes differ."""

    name: Literal["image_folder"] = "image_folder"


def check(config: Config) -> None:
    """Raises UserError: a folder missing, a class folder without images, splits with different classes, a folder
    `valid` or `validation` in place of `val`, no image to hold out; links that lead back up
    or from one class or split to another."""
    _scan(config).check_held_out(config.val_fraction)


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, H, W), of the first image, and the number of classes."""
    from harness.data._images import first_shape

    source = Folder(root_of(config, LAYOUT))
    if not (source.root / "train").is_dir():
        check(config)  # says what is missing
    classes = source.folders("train")
    return first_shape(source, [f"train/{name}" for name in classes], config), len(classes)


def read(config: Config) -> "Raw":
    """uint8 (N, 3, H, W), 255 means 1.0. Raises UserError like `check`; a damaged image; unequal sizes."""
    from harness.data._images import read_labelled

    return read_labelled(config, _scan(config))


def _scan(config: Config) -> LabelledFiles:
    refuse_download(config, f"put {LAYOUT} at data.root")
    root = root_of(config, LAYOUT)
    if not (root / "train").is_dir():
        raise MissingDataError(f"data.root: {looked_at(root)} has no folder train/; image_folder reads {LAYOUT}")
    if not (root / "test").is_dir():
        raise MissingDataError(
            f"data.root: {looked_at(root)} has no folder test/, which is needed: results are reported on it, "
            f"so the harness does not draw it at random; image_folder reads {LAYOUT}"
        )
    source = Folder(root)
    classes = source.folders("train")
    if len(classes) < 2:
        raise UserError(f"data.root: {root / 'train'} needs a folder for each of two or more classes")
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "val" not in names and (other := folder_like("val", root)):
        raise UserError(
            f"data.root: {root / other} would not be used, and {config.val_fraction} of train/ would validate, as "
            "there is no folder val/; rename it to val, or, to leave it out, move it elsewhere"
        )
    for name in names:
        _refuse_other_classes(root / name, classes, source.folders(name))
    splits = {split: labelled(source, [f"{split}/{name}" for name in classes]) for split in names}
    if report := source.report():
        warnings.warn(f"data.root: {printable(root)}: {report}", stacklevel=1)  # once a process
    return LabelledFiles(source, tuple(map(printable, classes)), splits)


def _refuse_other_classes(folder: Path, classes: list[str], found: list[str]) -> None:
    missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing:
        raise UserError(f"data.root: {folder} lacks class folders that train/ has: {', '.join(missing[:5])}")
    if more:
        raise UserError(f"data.root: {folder} has class folders that train/ lacks: {', '.join(more[:5])}")
