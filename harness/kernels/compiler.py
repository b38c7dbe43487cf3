"""Compiles kernels/csrc/ for this processor when it is first needed, and keeps the library: a few seconds, once.

A compiler for the whole graph would do, but takes up to half a minute a process, and its passes three times as long.
Without a C compiler everything works by plain tensor operations.
"""

import ctypes
import hashlib
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.core.cache import cached_files, drop, keep

_SOURCES = tuple(sorted(Path(__file__).parent.glob("csrc/*.c")))
_HEADERS = tuple(sorted(Path(__file__).parent.glob("csrc/*.h")))
#: No option may change a result: no reassociation, no contraction to fused multiply-add.
_OPTIONS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared", "-fPIC")
#: Tried in turn: processors and compilers differ in what they take; without OpenMP there is one thread.
_VARIANTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())


def load_library(compiler: str) -> ctypes.CDLL:
    """The shared library for this source, compiler and processor, from the cache or compiled and kept there.

    A file of the cache that is not whole is deleted and made again; without a usable cache folder every process
    compiles. Raises OSError, RuntimeError or SubprocessError where it cannot be compiled or loaded.
    """
    prefix = f"native-{_key(compiler)}"
    for path in cached_files(f"{prefix}-*.so"):
        if not _whole(path):
            drop(path)
        elif (loaded := _try_load(path)) is not None:
            return loaded
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "native.so"
        _compile(compiler, built)
        content = built.read_bytes()
        name = f"{prefix}-{_digest(content)}.so"
        kept = keep(name, lambda path: path.write_bytes(content), "every process compiles the passes in C, for seconds")
        # A loaded library stays when its file is deleted.
        return (_try_load(kept) if kept else None) or ctypes.CDLL(str(built))


def _key(compiler: str) -> str:
    """Names what the library is compiled from, by and for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    texts = [path.read_text() for path in (*_SOURCES, *_HEADERS)]
    return _digest("\0".join((*texts, version, repr(_OPTIONS + _VARIANTS), _processor())).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _whole(path: Path) -> bool:
    """Whether the content is what the name says. Loading a file that was cut may end the process."""
    try:
        return path.stem.endswith(_digest(path.read_bytes()))
    except OSError:
        return False


def _try_load(path: Path) -> ctypes.CDLL | None:
    """None where no code may be loaded from there (a file system mounted with noexec)."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compile(compiler: str, path: Path) -> None:
    for variant in _VARIANTS:
        command = [compiler, *_OPTIONS, *variant, *map(str, _SOURCES), "-o", str(path), "-lm"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if ended.returncode == 0:
            return
    raise RuntimeError(f"{compiler} cannot compile {_SOURCES[0].name}: {ended.stderr[-500:]}")


def _processor() -> str:
    """What decides which instructions may be used: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join((sys.platform, platform.machine(), platform.processor(), *flags))
