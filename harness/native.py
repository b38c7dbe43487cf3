"""harness/native*.c, compiled for this processor when it is first needed, and kept: less than a second, once.

A compiler for the whole graph would do, but takes up to half a minute a process, and its passes three times as long.
Without a C compiler everything works by plain tensor operations.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from harness.cache import cache_folder

_SOURCES = tuple(sorted(Path(__file__).parent.glob("native*.c")))
_HEADERS = tuple(sorted(Path(__file__).parent.glob("native*.h")))
#: No option may change a result: no reassociation, no contraction to fused multiply-add.
_OPTIONS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-shared", "-fPIC")
#: Tried in turn: processors and compilers differ in what they take; without OpenMP there is one thread.
_VARIANTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
_BLOCK = 4096

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Layer(ctypes.Structure):
    """One weight and what belongs to it: pointers and sizes, as harness/native.c says."""

    _fields_ = (
        *((name, _P) for name in ("w", "grad", "code", "direction", "frequency", "flips", "oscillations")),
        *((name, _P) for name in ("codes", "ratio", "peak", "step", "scratch")),
        *((name, _N) for name in ("groups", "size")),
        *((name, _F) for name in ("low", "high")),
        *((name, ctypes.c_int32) for name in ("clipped", "graph")),
    )


_SIGNATURES = {
    "peaks": (_P, _N, _N, _P, _P),
    "regularize": (_P, _N, ctypes.c_double, _F, _P),
    "quantize": (_P, _P, _N, _N, _P, _F),
    "quantize_backward": (_P, _P, _P, _N, _N, _P, _P, _F, _F, ctypes.c_int, _P, _P, _P),
    "track": (_P, _N, _F),
    "dampening_value": (_P, _N, _N, _P, _F, _F, _P, _P),
    "dampening_gradient": (_P, _P, _N, _N, _P, _F, _F, _F),
    "moments": (_P, _N, _P, _P),
    "standardized_cubic": (_P, _P, _N, ctypes.c_double, ctypes.c_double, _F, _F, _F),
    "image_batch": (_P, _P, _N, _N, _N, _P, _P),
    "hold": (_P, _P, _P, _P, _N, _N, _P),
    "hold_backward": (_P, _P, _P, _P, _N, _N, _P, _P),
    "held_codes": (_P, _P, _P, _P, _N, _N, _P, _F, _F),
    "settle": (_P, _P, _P, _P, _P, _N, _F, ctypes.c_int),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there is no C compiler or nowhere to keep what it makes."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(f"plain tensor operations are used, several times slower: {error}", stacklevel=2)
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def _compiled(compiler: str) -> Path:
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


def on_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU that Triton makes code for: the passes of harness/gpu.py then serve."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def serves(*tensors: Tensor) -> bool:
    """Whether the passes can run on these: on the CPU, dense, all of one shape and order in memory."""
    here = all(tensor.device.type == "cpu" for tensor in tensors)
    return here and alike_in_memory(*tensors) and library() is not None


def alike_in_memory(*tensors: Tensor) -> bool:
    """Whether tensors are dense, and all of one shape and order in memory."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(_order(tensor) == _order(first) for tensor in tensors[1:])


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, but for dimensions of size 1, whose stride means nothing."""
    return [pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1]


# A weight, fp32 (O, ...), is `groups` shares of equal size that have a step each: 1, or O. Tensors `peak` and `step`
# are fp32 with `groups` elements; what else is given is like the weight. Callers have asked `serves`. high: the
# largest code of a clipped range, -1 without clipping; slack: how far beyond it, in steps, still counts as inside.


def peaks(weight: Tensor, groups: int) -> Tensor:
    """max|w| of each group, (groups,)."""
    out = torch.empty(groups)
    call("peaks", weight, *sizes_of(weight, groups), scratch_for(weight, groups), out)
    return out


def quantize(weight: Tensor, step: Tensor, high: float) -> Tensor:
    """The weight on the grid, `step * code`."""
    out = torch.empty_like(weight)
    call("quantize", weight, out, *sizes_of(weight, step.numel()), step, high)
    return out


def quantize_backward(
    weight: Tensor,
    grad: Tensor,
    peak: Tensor,
    step: Tensor,
    high: float,
    slack: float,
    graph: bool,
    further: Tensor | None = None,
) -> Tensor:
    """The gradient of the weight from `grad`, that of the weight on the grid: straight-through.

    graph: whether the step, a multiple of the peak, takes part in the gradient; further: what else its gradient is
    made of, fp64 like it.
    """
    out, groups = torch.empty_like(weight), step.numel()
    sizes, scratch = sizes_of(weight, groups), scratch_for(weight, groups)
    call("quantize_backward", weight, grad, out, *sizes, peak, step, high, slack, graph, further, 0, scratch)
    return out


def learned_step_backward(
    weight: Tensor, grad: Tensor, step: Tensor, high: float, slack: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of the steps, (groups,), from `grad`, that of the weight on the grid."""
    out, pulls, groups = torch.empty_like(weight), torch.empty(step.numel()), step.numel()
    sizes, scratch = sizes_of(weight, groups), scratch_for(weight, groups)
    call("quantize_backward", weight, grad, out, *sizes, 0, step, high, slack, 0, 0, pulls, scratch)
    return out, pulls


def image_batch(images: Tensor, rows: Tensor | None, table: Tensor) -> Tensor:
    """fp32 (B, C, H, W) from uint8 images (N, C, H, W): those at `rows`, int64 (B,), or all of them.

    table: fp32 (C, 256), what each value becomes. All dense, on the CPU. Raises IndexError for a row that is not there.
    """
    channels, height, width = images.shape[1:]
    if rows is not None and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(images):
        raise IndexError(f"rows from {int(rows.min())} to {int(rows.max())} of {len(images)} images")
    count, places = (len(images), 0) if rows is None else (len(rows), rows.contiguous())
    out = torch.empty(count, channels, height, width)
    call("image_batch", images, places, count, channels, height * width, table, out)
    return out


class Table:
    """Layers for one call over all of them: a pass then costs little more than reading the weights.

    entries: whoever makes the call sets `w`, and what else it needs, before each: tensors may have moved. A layer of
    size 0 is left out. rows: one for all layers, since they go one after the other: fp32 (3, most), room for the
    groups' peaks, steps and ratios, which start at 1.
    """

    def __init__(self, weights: Sequence[Tensor], per_channel: bool) -> None:
        self.entries = (Layer * len(weights))()
        most = max(len(weight) for weight in weights) if per_channel else 1
        self.rows = torch.ones(3, most)
        blocks = max(most + weight.numel() // _BLOCK + 1 for weight in weights)
        self._scratch = torch.empty(3 * blocks, dtype=torch.float64)
        for entry in self.entries:
            entry.scratch = self._scratch.data_ptr()
            entry.peak, entry.step, entry.ratio = (row.data_ptr() for row in self.rows)

    def regularize(self, strength: float, slack: float) -> Tensor:
        """Add the regularizer's gradient to each `grad`; returns its value, shape (), float64."""
        value = torch.empty((), dtype=torch.float64)
        call("regularize", ctypes.addressof(self.entries), len(self.entries), strength, slack, value)
        return value

    def track(self, increment: float) -> None:
        """Bring each layer's codes, directions, frequencies and counts up to date."""
        call("track", ctypes.addressof(self.entries), len(self.entries), increment)


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a function of the library; a tensor goes as the address of its first element."""
    found = library()
    assert found is not None, "ask `serves` first"
    getattr(found, name)(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))


def sizes_of(weight: Tensor, groups: int) -> tuple[int, int]:
    """How many groups, and the weights of each."""
    return groups, weight.numel() // groups


def scratch_for(weight: Tensor, groups: int) -> Tensor:
    """Three doubles a block of each group."""
    return torch.empty(3 * groups * -(-weight.numel() // groups // _BLOCK), dtype=torch.float64)
