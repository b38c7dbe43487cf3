"""Your own images: `train/<class>/`, `test/<class>/` and, if you have it, `val/<class>/`.

Classes are folder names, sorted, the same in each split. Grey images become RGB, transparency is dropped.
Images may lie at any depth below a class folder; hidden files and other kinds of file do not count.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.errors import UserError
from harness.data._config import DataConfig, refuse_download, root_of
from harness.data._source import IMAGE_ENDINGS, Folder

if TYPE_CHECKING:
    from harness.data.base import Raw

LAYOUT = "a folder with train/<class>/*.jpg (or .png, ...), test/<class>/ and, optionally, val/<class>/"


class Config(DataConfig):
    """`root` holds train/ and test/. `resize` is needed where image sizes differ."""

    name: Literal["image_folder"] = "image_folder"


@dataclass(frozen=True)
class _Files:
    """Image names and their labels in each split, by the split's name."""

    source: Folder
    classes: list[str]
    splits: dict[str, list[tuple[str, int]]]


def check(config: Config) -> None:
    """Raises UserError: a folder missing, a class folder without images, splits with different classes."""
    _scan(config)


def read(config: Config) -> "Raw":
    """uint8 (N, 3, H, W), 255 means 1.0. Raises UserError like `check`; a damaged image; unequal sizes."""
    from harness.data._cache import cached

    files = _scan(config)
    names = [name for split in files.splits.values() for name, _ in split]
    key = files.source.fingerprint(names)
    return cached("image_folder", key, config.resize, lambda: _decode(files, config.resize))


def _scan(config: Config) -> _Files:
    refuse_download(config, f"put {LAYOUT} at data.root")
    root = root_of(config, LAYOUT)
    if not (root / "train").is_dir():
        raise UserError(f"data.root: {root} has no folder train/; image_folder reads {LAYOUT}")
    if not (root / "test").is_dir():
        raise UserError(
            f"data.root: {root} has no folder test/, which is needed: results are reported on it, "
            f"so the harness does not draw it at random; image_folder reads {LAYOUT}"
        )
    source = Folder(root)
    classes = source.folders("train")
    if len(classes) < 2:
        raise UserError(f"data.root: {root / 'train'} needs a folder for each of two or more classes")
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    for name in names:
        _refuse_other_classes(root / name, classes, source.folders(name))
    return _Files(source, classes, {name: _labelled(source, name, classes) for name in names})


def _refuse_other_classes(folder: Path, classes: list[str], found: list[str]) -> None:
    missing, more = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing:
        raise UserError(f"data.root: {folder} lacks class folders that train/ has: {', '.join(missing[:5])}")
    if more:
        raise UserError(f"data.root: {folder} has class folders that train/ lacks: {', '.join(more[:5])}")


def _labelled(source: Folder, split: str, classes: list[str]) -> list[tuple[str, int]]:
    images = []
    for label, name in enumerate(classes):
        found = source.names(f"{split}/{name}")
        if not found:
            raise UserError(
                f"data.root: {source.show(f'{split}/{name}')} holds no images (files ending in "
                f"{' '.join(IMAGE_ENDINGS)})"
            )
        images += [(image, label) for image in found]
    return images


def _decode(files: _Files, resize: int | None) -> "Raw":
    import torch

    from harness.data._images import decode
    from harness.data.base import Raw, Split

    everything = [pair for split in files.splits.values() for pair in split]
    images = decode(files.source, [name for name, _ in everything], resize)
    labels = torch.tensor([label for _, label in everything])
    sizes = [len(split) for split in files.splits.values()]
    parts = zip(files.splits, images.split(sizes), labels.split(sizes), strict=True)
    splits = {name: Split(pixels, numbers) for name, pixels, numbers in parts}
    return Raw(
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        class_names=tuple(files.classes),
        max_value=255,
    )
