"""Language modelling on your own text: a UTF-8 file, or a folder of them.

Splits are files and folders below `data.root`, or parts of the text: without `test` the end of the training text
tests, and without `val` what is then its end validates. Where no split is named, folders and files called like one
(`val`, `test`) are refused: `train: .` pools them. Files are read one after another, sorted by path. With
characters as tokens those of the training text have ids of their own; all others share one.
"""

from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.core.errors import MissingDataError, UserError
from harness.data._config import TextConfig, looked_at, refuse_download, root_of
from harness.data._named_splits import NAMES, named_like

if TYPE_CHECKING:
    import torch

    from harness.data._windows import TextData

LAYOUT = "a UTF-8 file, or a folder of them"
_SPLITS = ("train", "val", "test")


class Config(TextConfig):
    """`root` is a file or a folder. Hidden files and folders do not count."""

    name: Literal["text"] = "text"
    files: str = Field("*", min_length=1, description="glob of the names of files that count in folders, such as *.txt")
    train: str | None = Field(
        None, min_length=1, description="file or folder below root to train on; null: all that val and test do not name"
    )
    val: str | None = Field(None, min_length=1, description="the same for validation; null: the end of train")
    test: str | None = Field(None, min_length=1, description="the same for test; null: the end of train")
    val_fraction: float = Field(0.05, gt=0, lt=0.5, description="part of train set aside where there is no val")
    test_fraction: float = Field(0.05, gt=0, lt=0.5, description="part of train set aside where there is no test")


def check(config: Config) -> None:
    """Raises UserError: nothing at root, no such tokenizer; a split without files, a file in two splits; folders called
    like splits where none is named; bytes that are not UTF-8; a split without text or no longer than a window."""
    from harness.data._tokens import check_text, check_tokenizer

    check_tokenizer(config.tokenizer)
    check_text(config, _texts(config))


def shape(config: Config) -> tuple[tuple[int], int]:
    """(T,), and the size of the vocabulary, for which the text is read."""
    from harness.data._tokens import vocabulary_size

    return (config.context,), vocabulary_size(config.tokenizer, _characters(config))


def load(config: Config, seed: int, device: "torch.device | str") -> "TextData":
    """The text on a device; nothing depends on the seed. Raises UserError like `check`."""
    from harness.data._windows import text_data

    check(config)
    return text_data(config, _texts(config), _characters(config), device)


def _characters(config: Config) -> str:
    return "".join(sorted(set(_texts(config)["train"])))


def _texts(config: Config) -> dict[str, str]:
    """The text of each split. Raises UserError for one that is empty."""
    files = _scan(config)
    texts = {split: _read(tuple(paths), _stamp(paths)) for split, paths in files.items()}
    for split, text in texts.items():
        if not text:
            where = f"data.{split}" if getattr(config, split) else "data.root"
            raise UserError(f"{where}: {', '.join(map(str, files[split][:3]))}: empty, there is no text to read")
    for split, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        if split not in texts:
            end = len(texts["train"]) - round(len(texts["train"]) * fraction)
            texts["train"], texts[split] = texts["train"][:end], texts["train"][end:]
    return {split: texts[split] for split in _SPLITS}


@lru_cache(maxsize=6)
def _read(paths: tuple[Path, ...], stamp: object) -> str:
    """The files one after another. stamp: changes when one of them does."""
    from harness.data._tokens import read_text

    return "".join(read_text(path, "data.root") for path in paths)


def _stamp(paths: list[Path]) -> tuple[tuple[int, int], ...]:
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths))


def _scan(config: Config) -> dict[str, list[Path]]:
    """The files of each split that has some of its own: at least of train."""
    refuse_download(config, f"put {LAYOUT} at data.root")
    root = root_of(config, LAYOUT)
    named = {split: name for split in _SPLITS if (name := getattr(config, split)) is not None}
    if root.is_file():
        for split, name in named.items():
            raise UserError(f"data.{split}: {name!r}: data.root is one file, {root}; name a folder there")
        return {"train": [root]}
    found = {split: _below(root / name, config, f"data.{split}") for split, name in named.items()}
    taken: dict[Path, str] = {}
    for split, paths in found.items():
        for path in paths:
            if (other := taken.setdefault(path, split)) != split:
                raise UserError(f"data.{split}: {path} is a file of {other}, too")
    if "train" not in found:
        found["train"] = [path for path in _below(root, config, "data.root") if path not in taken]
        if not named:
            _refuse_pooled_splits(root, found["train"])
        if not found["train"]:
            raise UserError(f"data.root: {root} holds no file beside those of {', '.join(named)}")
    return found


def _refuse_pooled_splits(root: Path, paths: list[Path]) -> None:
    """Raise UserError where files, all of which train, are of folders or files that are called like other splits."""
    tops = {path.relative_to(root).parts[0] for path in paths}
    likely = {split: name for split in NAMES if (name := named_like(split, tops)) is not None}
    if likely and len(tops) > 1:
        places = " and ".join(str(root / name) for name in likely.values())
        ways = ", ".join(f"data.{split}: {name}" for split, name in likely.items())
        raise UserError(
            f"data.root: {places} would be pooled with all other text, the ends of which validate and test, as none of "
            f"data.train, data.val and data.test is set; set {ways}, or, to pool all text, data.train: ."
        )


def _below(place: Path, config: Config, where: str) -> list[Path]:
    """A file, or those of a folder that count, sorted."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise MissingDataError(f"{where}: neither a file nor a folder is at {looked_at(place)}; text reads {LAYOUT}")
    found = [path for path in sorted(place.rglob("*")) if _counts(path, place, config.files) and path.is_file()]
    if not found:
        raise MissingDataError(f"{where}: {looked_at(place)} holds no file of data.files: {config.files!r}")
    return found


def _counts(path: Path, place: Path, files: str) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
    return fnmatchcase(path.name, files) and not hidden
