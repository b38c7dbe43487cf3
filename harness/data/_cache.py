"""Images are decoded once: the result is kept in `$HARNESS_CACHE`, or ~/.cache/oscillation-harness."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import PIL
import torch

from harness.core.cache import cached_files, keep
from harness.data._raw import Raw, Split

#: Part of every key; goes up when the way images are decoded changes.
VERSION = 1

T = TypeVar("T")


def cached(name: str, fingerprint: str, resize: int | str | None, make: Callable[[], Raw]) -> Raw:
    """What `make` returns, from the cache where an earlier process already called it.

    name: the data set. fingerprint: changes whenever a source file does.
    """
    return decoded_once(name, f"{resize}/{fingerprint}", make, _pack, _unpack)


def stem(name: str, key: str) -> str:
    """The name of a file of the cache, without its ending."""
    # Pillow's version counts because a new one may decode a JPEG to other pixels.
    return f"{name}-{hashlib.sha256(f'{VERSION}/{PIL.__version__}/{key}'.encode()).hexdigest()[:32]}"


def decoded_once(
    name: str, key: str, make: Callable[[], T], pack: Callable[[T], dict[str, Any]], unpack: Callable[[Any], T | None]
) -> T:
    """The same of anything that is made of images. key: changes whenever what is made does.

    pack: into tensors and plain values. unpack: what was packed, or None where it is not what was written; it may raise
    anything. A damaged cache file is made again; without a usable cache folder a warning is given, and every run
    decodes.
    """
    file = f"{stem(name, key)}.pt"
    for path in cached_files(file):
        try:
            found = unpack(torch.load(path, weights_only=True))
        except Exception:  # a damaged file fails in many ways; each means the same: decode again
            continue
        if found is not None:
            return found
    made = make()

    def write(path: Path) -> None:
        with open(path, "wb") as opened:
            torch.save(pack(made), opened)

    keep(file, write, "decoded images are not cached, every run decodes them")
    return made


def _unpack(stored: Any) -> Raw | None:
    splits, val = stored["splits"], stored["splits"]["val"]
    raw = Raw(
        train=Split(*splits["train"]),
        test=Split(*splits["test"]),
        val=Split(*val) if val else None,
        class_names=tuple(stored["class_names"]),
        max_value=stored["max_value"],
    )
    return raw if raw.digest == stored["digest"] else None


def _pack(raw: Raw) -> dict[str, Any]:
    splits = {key: getattr(raw, key) for key in ("train", "test", "val")}
    return {
        "splits": {key: [split.images, split.labels] if split else None for key, split in splits.items()},
        "class_names": list(raw.class_names),
        "max_value": raw.max_value,
        "digest": raw.digest,
    }
