"""A process that decodes images into a file of the cache: `python -m harness.data._decoder`. Free of torch.

It reads a line of JSON that says what all of its work has in common, then one for each chunk of images. It answers each
with a line: the digest of the chunk, or what is wrong. It ends when its input does, so that none is left over when the
process that started it is killed.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError
from harness.data._config import Resize, ShorterSide
from harness.data._decoding import decode_one, unequal
from harness.data._source import Source, source_at


@dataclass(frozen=True)
class Work:
    """What all chunks have in common.

    first: the name of the first image. shape: of each, (C, H, W). file: where they are written, one after the other.
    """

    source: Source
    first: str
    shape: tuple[int, int, int]
    resize: Resize
    file: str

    @property
    def size(self) -> int:
        """Bytes of an image."""
        channels, height, width = self.shape
        return channels * height * width

    def as_json(self) -> str:
        """One line."""
        resize = self.resize.model_dump() if isinstance(self.resize, ShorterSide) else self.resize
        return json.dumps([self.source.place, self.first, list(self.shape), resize, self.file])

    @classmethod
    def from_json(cls, line: str) -> "Work":
        """Of `as_json`."""
        source, first, shape, resize, file = json.loads(line)
        fit = ShorterSide(**resize) if isinstance(resize, dict) else resize
        return cls(source_at(source), first, tuple(shape), fit, file)


def decode_chunk(work: Work, names: Sequence[str], start: int) -> str:
    """Write images to their places in the file, that of the first has the number `start`; the digest of their bytes.

    Raises UserError, naming the file, as `decode` does; OSError where the disk is full.
    """
    digest = hashlib.sha256()
    channels, height, width = work.shape
    with open(work.file, "r+b", buffering=0) as file:
        for number, name in enumerate(names, start):
            image = decode_one(work.source, name, work.resize)
            if image.shape != (height, width, channels):
                raise unequal(work.source, work.first, (height, width, channels), name, image.shape)
            content = image.transpose(2, 0, 1).tobytes()
            if os.pwrite(file.fileno(), content, number * work.size) != len(content):
                raise OSError("the disk is full")
            digest.update(content)
    return digest.hexdigest()[:32]


class Decoder:
    """A process that decodes chunks, one at a time. Free of this one's locks and threads, unlike a forked one."""

    def __init__(self, work: Work) -> None:
        own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}  # numpy's
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.data._decoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | own,
            start_new_session=True,  # Ctrl-C is for this process alone, which ends that one
        )
        self._say(work.as_json())

    def decode(self, names: Sequence[str], start: int) -> str:
        """`decode_chunk` there; raises what it raises."""
        self._say(json.dumps([list(names), start]))
        assert self._process.stdout is not None, "a pipe"
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process that decodes images ended (exit status {self._process.wait()})")
        kind, text = json.loads(answer)
        if kind != "digest":
            raise UserError(text) if kind == "wrong" else OSError(text)
        return str(text)

    def close(self) -> None:
        """End the process, which loses the chunk that it is at."""
        self._process.kill()
        self._process.communicate()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None, "a pipe"
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its answer, which is none, says that it ended


def main() -> None:
    """Decode what is asked for, until there is no more."""
    first = sys.stdin.readline()
    if not first:
        return  # what started it is gone
    work = Work.from_json(first)
    for line in sys.stdin:
        answer: Any
        try:
            answer = ["digest", decode_chunk(work, *json.loads(line))]
        except UserError as error:
            answer = ["wrong", str(error)]
        except OSError as error:
            answer = ["failed", str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
