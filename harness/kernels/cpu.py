"""The passes over weights and images in C, for tensors on the CPU."""

import ctypes
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from harness.kernels.compiler import _compiled

_BLOCK = 4096

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Layer(ctypes.Structure):
    """One weight and what belongs to it: pointers and sizes, as harness/kernels/csrc/weights.c says."""

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


def dampening_value(weight: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """The sum of (q(w) - clip(w, s low, s high))^2, shape (), float64; codes from low to high."""
    value, groups = torch.empty((), dtype=torch.float64), step.numel()
    call("dampening_value", weight, *sizes_of(weight, groups), step, low, high, scratch_for(weight, groups), value)
    return value


def dampening_gradient(weight: Tensor, step: Tensor, low: float, high: float, factor: float) -> Tensor:
    """The gradient of factor / 2 times that sum, q(w) and s held; like the weight."""
    out = torch.empty_like(weight)
    call("dampening_gradient", weight, out, *sizes_of(weight, step.numel()), step, low, high, factor)
    return out


def moments(weight: Tensor) -> tuple[float, float, float, float]:
    """The mean of a whole weight, and the sums of (w - mean) to the powers 2, 3 and 4."""
    out = torch.empty(4, dtype=torch.float64)
    call("moments", weight, weight.numel(), scratch_for(weight, 1), out)
    mean, second, third, fourth = out.tolist()
    return mean, second, third, fourth


def standardized_cubic(
    weight: Tensor, mean: float, deviation: float, cubic: float, linear: float, constant: float
) -> Tensor:
    """`cubic z^3 + linear z + constant` of z = (w - mean) / deviation; like the weight."""
    out = torch.empty_like(weight)
    call("standardized_cubic", weight, out, weight.numel(), mean, deviation, cubic, linear, constant)
    return out


# Freezing: over a weight some of which is held at codes of its own. held: bool, code: int8, both like the weight.


def hold(others: Tensor, held: Tensor, code: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
    """`step * code` where held, fp32 `others` elsewhere; `out` may be `others` itself."""
    out = torch.empty_like(others) if out is None else out
    call("hold", others, held, code, out, *sizes_of(others, step.numel()), step)
    return out


def hold_backward(grad: Tensor, held: Tensor, code: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of `others` and, fp64 (groups,), of the step, from `grad`, that of what `hold` gave."""
    out, sums = torch.empty_like(grad), torch.empty(groups, dtype=torch.float64)
    call("hold_backward", grad, held, code, out, *sizes_of(grad, groups), sums, scratch_for(grad, groups))
    return out, sums


def held_codes(weight: Tensor, held: Tensor, code: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """int8: the code where held, `round(weight / step)` in [low, high] elsewhere."""
    out = torch.empty_like(code)
    call("held_codes", weight, held, code, out, *sizes_of(weight, step.numel()), step, low, high)
    return out


def settle(
    codes: Tensor, average: Tensor, frequency: Tensor, held: Tensor, code: Tensor, momentum: float, limit: int
) -> None:
    """Move the fp32 averages towards the codes by `momentum`, then hold at round(average) what oscillates too often.

    That is where `frequency`, fp16, has bits of at least `limit`; what is held already stays as it is.
    """
    call("settle", codes, average, frequency, held, code, codes.numel(), momentum, limit)
