"""Images are decoded once: the result is kept in `$HARNESS_CACHE`, or ~/.cache/oscillation-harness."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import torch

from harness.core.cache import cached_files, keep
from harness.data.base import Raw, Split

#: Part of every key; goes up when the way images are decoded changes.
VERSION = 1


def cached(name: str, fingerprint: str, resize: int | None, make: Callable[[], Raw]) -> Raw:
    """What `make` returns, from the cache where an earlier process already called it.

    name: the data set. fingerprint: changes whenever a source file does. A damaged cache file is made again;
    without a usable cache folder a warning is given and every run decodes.
    """
    # Pillow's version counts because a new one may decode a JPEG to other pixels.
    key = hashlib.sha256(f"{VERSION}/{PIL.__version__}/{resize}/{fingerprint}".encode()).hexdigest()[:32]
    file = f"{name}-{key}.pt"
    for path in cached_files(file):
        if (raw := _load(path)) is not None:
            return raw
    raw = make()
    _save(file, raw)
    return raw


def _load(path: Path) -> Raw | None:
    """The cached data set, or None where its content is not what was written."""
    try:
        stored = torch.load(path, weights_only=True)
        splits, val = stored["splits"], stored["splits"]["val"]
        raw = Raw(
            train=Split(*splits["train"]),
            test=Split(*splits["test"]),
            val=Split(*val) if val else None,
            class_names=tuple(stored["class_names"]),
            max_value=stored["max_value"],
        )
        return raw if raw.digest == stored["digest"] else None
    except Exception:  # a damaged file fails in many ways; each means the same: decode again
        return None


def _save(name: str, raw: Raw) -> None:
    splits = {key: getattr(raw, key) for key in ("train", "test", "val")}
    stored: dict[str, Any] = {
        "splits": {key: [split.images, split.labels] if split else None for key, split in splits.items()},
        "class_names": list(raw.class_names),
        "max_value": raw.max_value,
        "digest": raw.digest,
    }

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            torch.save(stored, file)

    keep(name, write, "decoded images are not cached, every run decodes them")
