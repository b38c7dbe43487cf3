"""Compiles kernels/csrc/ for this processor when it is first needed, and keeps the library: under a second, once.

A compiler for the whole graph would do, but takes up to half a minute a process, and its passes three times as long.
Without a C compiler everything works by plain tensor operations.
"""

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.core.cache import cache_folder

_SOURCES = tuple(sorted(Path(__file__).parent.glob("csrc/*.c")))
_HEADERS = tuple(sorted(Path(__file__).parent.glob("csrc/*.h")))
#: No option may change a result: no reassociation, no contraction to fused multiply-add.
_OPTIONS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared", "-fPIC")
#: Tried in turn: processors and compilers differ in what they take; without OpenMP there is one thread.
_VARIANTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())


def compiled_library(compiler: str) -> Path:
    """The shared library for this source, compiler and processor, made if it is not there."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    texts = [path.read_text() for path in (*_SOURCES, *_HEADERS)]
    key = hashlib.sha256("\0".join((*texts, version, repr(_OPTIONS + _VARIANTS), _processor())).encode())
    path = cache_folder() / f"native-{key.hexdigest()[:24]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:  # renamed: processes may race
            _compile(compiler, Path(aside) / "native.so")
            os.replace(Path(aside) / "native.so", path)
    return path


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
