"""Decoded images in a file of the cache that is mapped into memory: for data sets that are larger than memory.

    <name>-<key>.u8         the pixels, uint8 (N, C, H, W), and nothing else
    <name>-<key>.json       shape, digest of each chunk, digest of the data set; written last
    <name>-<key>.part       the pixels, while they are made
    <name>-<key>.part.log   a line for each chunk that is whole: its number and digest

Making the file goes on where a process that was killed stopped, after a look at the digests of what is there. One
process makes it at a time; others wait.
"""

import contextlib
import hashlib
import json
import os
import queue
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from harness.core.cache import cache_folder, drop
from harness.core.errors import UserError
from harness.data._config import Resize
from harness.data._decoder import Decoder, Work, decode_chunk
from harness.data._decoding import cores
from harness.data._source import Source

#: Images whose digest is taken together.
CHUNK = 256
#: Of files up to this size each chunk is compared with its digest at every start, of larger ones SAMPLED chunks.
FULLY_CHECKED = 2**31
SAMPLED = 32
#: What is to be left free on the disk, in bytes.
MARGIN = 2**26


def mapped(
    stem: str,
    source: Source,
    names: Sequence[str],
    shape: tuple[int, int, int],
    resize: Resize,
    digest_of: Callable[[Tensor], str],
) -> tuple[Tensor, str]:
    """Images from the cache, uint8 (N, C, H, W), and the data set's digest; decoded first where that is needed.

    stem: of the file; changes whenever a source file does. shape: (C, H, W). digest_of: of the whole data set, from the
    images. Raises UserError like `decode`, and for a cache folder that cannot be used or whose disk is too small.
    """
    file, whole = _folder() / f"{stem}.u8", (len(names), *shape)
    if (known := _known(file, whole)) is None:
        with FileLock(file.with_suffix(".lock")):
            if (known := _known(file, whole)) is None:
                chunks = _made(file, Work(source, names[0], shape, resize, str(file.with_suffix(".part"))), names)
                known = {"shape": list(whole), "chunks": chunks, "digest": digest_of(open_mapped(file, whole))}
                aside = file.with_suffix(".json.part")
                aside.write_text(json.dumps(known))
                aside.replace(file.with_suffix(".json"))
    return open_mapped(file, whole), str(known["digest"])


def open_mapped(file: Path, shape: Sequence[int]) -> Tensor:
    """A file as uint8 of a shape. Pages come as they are looked at, and the system may take them back.

    It is mapped for reading alone: Linux refuses a mapping of one's own to write to that is larger than memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about tensors that may not be written to
        return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=tuple(shape)))


def _folder() -> Path:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(f"{folder} may not be written to")
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.residency: disk keeps decoded images in the cache folder, which cannot be used: {error}; set "
            "HARNESS_CACHE to a folder on a disk with room"
        ) from None
    return folder


def _known(file: Path, shape: Sequence[int]) -> dict[str, Any] | None:
    """What the file's description says, or None where the file is not there or is not what was written."""
    try:
        known: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())
        size = int(np.prod(shape[1:], dtype=np.int64))
        whole = known["shape"] == list(shape) and file.stat().st_size == size * shape[0]
        return known if whole and _as_written(file, size, shape[0], known["chunks"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_written(file: Path, size: int, count: int, chunks: Sequence[str]) -> bool:
    every = 1 if size * count <= FULLY_CHECKED else max(1, len(chunks) // SAMPLED)
    with open(file, "rb") as pixels:
        return all(_digest_at(pixels.fileno(), at, size, count) == chunks[at] for at in range(0, len(chunks), every))


def _digest_at(pixels: int, chunk: int, size: int, count: int) -> str:
    """The digest of a chunk as it is in the file. size: of an image; count: of all of them."""
    digest = hashlib.sha256()
    for number in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
        digest.update(os.pread(pixels, size, number * size))
    return digest.hexdigest()[:32]


def _made(file: Path, work: Work, names: Sequence[str]) -> list[str]:
    """Make the file; returns the digest of each chunk."""
    part, log = file.with_suffix(".part"), file.with_suffix(".part.log")
    chunks = range(-(-len(names) // CHUNK))
    _reserve(part, len(names) * work.size)
    with open(part, "rb") as pixels, open(log, "a+", encoding="ascii") as journal:
        done = _done(journal, pixels.fileno(), work.size, len(names))
        missing = [chunk for chunk in chunks if chunk not in done]
        with _progress(len(chunks), len(done)) as step, _decoding(work, names, len(missing)) as decode:
            for chunk, digest in zip(missing, decode(missing)):  # in order: the first damaged file is the one named
                done[chunk] = digest
                journal.write(f"{chunk} {digest}\n")
                journal.flush()
                step()
        os.fsync(pixels.fileno())
    part.replace(file)
    drop(log)
    return [done[chunk] for chunk in chunks]


@contextlib.contextmanager
def _decoding(work: Work, names: Sequence[str], chunks: int) -> Iterator[Callable[[Sequence[int]], Iterator[str]]]:
    """What decodes chunks, given by number: in a process a core, or in this one if there is but one chunk to do."""
    decoders = [Decoder(work) for _ in range(min(cores(), chunks))] if chunks > 1 else []
    idle: queue.SimpleQueue[Callable[[Sequence[str], int], str]] = queue.SimpleQueue()
    for each in decoders:
        idle.put(each.decode)

    def decode(chunk: int) -> str:
        mine, start = names[chunk * CHUNK : (chunk + 1) * CHUNK], chunk * CHUNK
        if not decoders:
            return decode_chunk(work, mine, start)
        with _taken(idle) as with_one:
            return with_one(mine, start)

    pool = ThreadPoolExecutor(max(1, len(decoders)))
    try:
        yield lambda numbers: pool.map(decode, numbers)
    except OSError as error:
        raise UserError(f"data.residency: decoded images cannot be kept in {work.file}: {error}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for one in decoders:
            one.close()
        pool.shutdown()


@contextlib.contextmanager
def _taken(idle: "queue.SimpleQueue[Any]") -> Iterator[Any]:
    one = idle.get()
    try:
        yield one
    finally:
        idle.put(one)


def _done(journal: TextIO, pixels: int, size: int, count: int) -> dict[int, str]:
    """The chunks that an earlier process made, by number, as far as they are what it wrote."""
    found: dict[int, str] = {}
    journal.seek(0)
    for line in journal:
        number, _, digest = line.strip().partition(" ")
        if number.isdigit() and int(number) * CHUNK < count and _digest_at(pixels, int(number), size, count) == digest:
            found[int(number)] = digest
    return found


def _reserve(part: Path, size: int) -> None:
    """Give a file its size. Raises UserError where the disk has no room for it, before anything is decoded."""
    there = part.stat().st_blocks * 512 if part.exists() else 0
    free = shutil.disk_usage(part.parent).free + there
    if free < size + MARGIN:
        raise UserError(
            f"data.residency: decoded images take {gib(size)}, besides {gib(MARGIN)} that stay free, and {part.parent} "
            f"has {gib(free)} free; set HARNESS_CACHE to a folder on a larger disk, or make images smaller "
            "(data.resize)"
        )
    with open(part, "ab") as file:
        os.truncate(file.fileno(), size)


def gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal, if there is one; counts chunks."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("decoding images", total=total, completed=done)
        yield lambda: bar.advance(task)
