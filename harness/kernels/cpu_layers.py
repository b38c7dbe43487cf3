"""The passes over all weights that a step makes on a CPU, each one call for all layers: regularizer, tracker."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.kernels import library
from harness.kernels.cpu import BLOCK

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


class Table:
    """Layers for one call over all of them: a pass then costs little more than reading the weights.

    entries: the caller sets `w`, and what else a call needs, before each call: tensors may have moved. A layer of size
    0 is left out. rows: fp32 (3, most), room for the groups' peaks, steps and ratios, which start at 1; one for all
    layers, since they go one after the other.
    """

    def __init__(self, weights: Sequence[Tensor], per_channel: bool) -> None:
        self.entries = (Layer * len(weights))()
        most = max(len(weight) for weight in weights) if per_channel else 1
        self.rows = torch.ones(3, most)
        blocks = max(most + weight.numel() // BLOCK + 1 for weight in weights)
        self._scratch = torch.empty(3 * blocks, dtype=torch.float64)
        for entry in self.entries:
            entry.scratch = self._scratch.data_ptr()
            entry.peak, entry.step, entry.ratio = (row.data_ptr() for row in self.rows)

    def regularize(self, strength: float, slack: float) -> Tensor:
        """Add the regularizer's gradient to each `grad`; returns its value, shape (), float64."""
        value = torch.empty((), dtype=torch.float64)
        library.call("regularize", ctypes.addressof(self.entries), len(self.entries), strength, slack, value)
        return value

    def track(self, increment: float) -> None:
        """Bring each layer's codes, directions, frequencies and counts up to date."""
        library.call("track", ctypes.addressof(self.entries), len(self.entries), increment)
