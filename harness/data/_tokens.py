"""Text as token ids: characters of a list, or a tokenizer of the transformers library. Free of torch."""

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import UserError
from harness.core.extras import check_extra, from_extra
from harness.core.hub import folder_of, opened
from harness.data._config import CHARACTERS, HF, TextConfig

#: A folder with a tokenizer has one of these.
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check_tokenizer(name: str) -> None:
    """Raise UserError where transformers is missing, or a folder without a tokenizer is named. Imports neither."""
    if name == CHARACTERS:
        return
    check_extra("transformers", "language", f"data.tokenizer: {name!r}")
    folder = folder_of(name.removeprefix(HF))
    if folder is not None and not any((folder / file).is_file() for file in _FILES):
        what = "holds no tokenizer" if folder.is_dir() else "is not there"
        raise UserError(f"data.tokenizer: {name!r}: {folder} {what} (one of {', '.join(_FILES)})")


def vocabulary_size(name: str, characters: str) -> int:
    """How many ids there are. characters: those that have an id of their own; all others share one, the last."""
    return len(characters) + 1 if name == CHARACTERS else len(_tokenizer(name))


@lru_cache(maxsize=8)
def encode(name: str, text: str, characters: str) -> np.ndarray:
    """A text's token ids, of the smallest type that holds the vocabulary: uint8, int16 or int32, (L,)."""
    size = vocabulary_size(name, characters)
    kind = np.uint8 if size <= 2**8 else np.int16 if size <= 2**15 else np.int32
    if name != CHARACTERS:
        return np.asarray(_ids(name, text), dtype=kind)
    ids = np.full(sys.maxunicode + 1, len(characters), dtype=kind)
    ids[[ord(each) for each in characters]] = np.arange(len(characters))
    return ids[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]


def _ids(name: str, text: str) -> list[int]:
    found: list[int] = _tokenizer(name)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    """A tokenizer, from a folder or the hub. Raises UserError where there is none."""
    check_tokenizer(name)
    transformers = from_extra("transformers", "language", f"data.tokenizer: {name!r}")
    source, reaching = opened(name.removeprefix(HF))
    try:
        with reaching:
            return transformers.AutoTokenizer.from_pretrained(source)
    except Exception as error:  # of a damaged file it raises many types, Exception itself among them
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"data.tokenizer: {name!r} cannot be loaded ({type(error).__name__}: {reason})") from error


def read_text(path: Path, where: str) -> str:
    """A UTF-8 file, with line ends as `\\n`. Raises UserError naming the file and the byte that is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: {path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; convert the file, "
            "or leave it out"
        ) from None


def check_lengths(config: TextConfig, lengths: Mapping[str, int]) -> None:
    """Raise UserError where a split is no longer than a window. lengths: of each split, in tokens."""
    what = "characters" if config.tokenizer == CHARACTERS else "tokens"
    for split, length in lengths.items():
        if length <= config.context:
            raise UserError(
                f"data.context: {config.context}: {split} has {length} {what}, and one more than a window is needed"
            )


def check_text(config: TextConfig, texts: Mapping[str, str]) -> None:
    """`check_lengths` of texts. Of tokens that are no characters it makes no more than it takes to tell."""
    if config.tokenizer == CHARACTERS:
        lengths = {split: len(text) for split, text in texts.items()}
    else:
        lengths = {split: _counted(config.tokenizer, text, config.context + 2) for split, text in texts.items()}
    check_lengths(config, lengths)


def _counted(name: str, text: str, enough: int) -> int:
    """How many tokens a text has, or, once they are `enough`, its beginning, whose last one a cut may have made."""
    part = 8 * enough
    while True:
        found = len(_ids(name, text[:part]))
        if found >= enough or part >= len(text):
            return found
        part *= 4
