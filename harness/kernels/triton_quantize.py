"""A max-abs quantizer's forward and backward pass on a GPU, for per-tensor steps.

Plain operations take 29 launches per layer, these 11, and read the weight five times. The arithmetic, fp32, is
that of harness/quantization/quantizer.py; codes are the same codes, and sums have a fixed order.

Importing this module needs Triton: harness/kernels/dispatch.py asks first.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.kernels.triton_layers import _scaled, _whole

_BLOCK = 2048


def peaks(weight: Tensor, groups: int = 1) -> Tensor:
    """max|w|, (1,): `groups` can only be 1."""
    assert groups == 1
    found = torch.zeros(1, dtype=torch.int32, device=weight.device)
    _peak[_blocks(weight)](weight, found, weight.numel(), _BLOCK)
    return found.view(torch.float32)


def quantize(weight: Tensor, step: Tensor, high: float) -> Tensor:
    """The weight on the grid, `step * code`. high: the largest code of a clipped range, -1 without clipping."""
    out = torch.empty_like(weight)
    _quantize[_blocks(weight)](weight, out, step, weight.numel(), _bound(high), _BLOCK)
    return out


def quantize_backward(
    weight: Tensor, grad: Tensor, peak: Tensor, step: Tensor, high: float, slack: float, graph: bool
) -> Tensor:
    """The gradient of the weight from `grad`, that of the weight on the grid, both alike in memory: straight-through.

    peak, step: (1,). high: as for `quantize`; slack: how far beyond it, in steps, still counts as inside. graph:
    whether the step, a multiple of the peak, takes part in the gradient.
    """
    high = _bound(high)
    out, (blocks,) = torch.empty_like(weight), _blocks(weight)
    factor = torch.zeros(1, dtype=torch.float32, device=weight.device)
    if graph:
        partial = torch.empty(2, blocks, dtype=torch.float32, device=weight.device)
        _sums[(blocks,)](weight, grad, peak, step, partial, blocks, weight.numel(), high, slack, _BLOCK)
        _factor[(1,)](partial, peak, step, factor, blocks, 1024)
    _backward[(blocks,)](weight, grad, peak, step, factor, out, weight.numel(), high, slack, _BLOCK)
    return out


def _bound(high: float) -> float:
    return high if high > 0 else math.inf


def _blocks(weight: Tensor) -> tuple[int]:
    return (-(-weight.numel() // _BLOCK),)


@triton.jit
def _peak(weight, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight + at, mask=at < size, other=0.0)
    tl.atomic_max(out, tl.max(tl.abs(x).to(tl.int32, bitcast=True), 0))  # see harness/kernels/triton_layers.py


@triton.jit
def _known(x, step):  # type: ignore[no-untyped-def]
    """`x`, or NaN where the step is not finite, as by plain operations."""
    return tl.where(step < float("inf"), x, step - step)


@triton.jit
def _quantize(weight, out, step, size, high, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight + at, mask=at < size, other=0.0)
    s = tl.load(step)
    k = _whole(tl.minimum(tl.maximum(_scaled(x, s), -high), high))
    tl.store(out + at, _known(s * k, s), mask=at < size)


@triton.jit
def _sums(  # type: ignore[no-untyped-def]
    weight, grad, peak, step, partial, blocks, size, high, slack, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight + at, mask=at < size, other=0.0)
    g = tl.load(grad + at, mask=at < size, other=0.0)
    v = _scaled(x, tl.load(step))
    k = _whole(tl.minimum(tl.maximum(v, -high), high))
    within = tl.where(tl.abs(v) <= high + slack, 1.0, 0.0)
    ties = (at < size) & (tl.abs(x) == tl.load(peak))
    tl.store(partial + block, tl.sum(g * (k - v * within), 0))
    tl.store(partial + blocks + block, tl.sum(tl.where(ties, 1.0, 0.0), 0))


@triton.jit
def _factor(partial, peak, step, out, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pulls = tl.zeros((BLOCK,), tl.float64)
    ties = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, blocks, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        pulls += tl.load(partial + at, mask=at < blocks, other=0.0).to(tl.float64)
        ties += tl.load(partial + blocks + at, mask=at < blocks, other=0.0).to(tl.float64)
    top = tl.load(peak)
    slope = tl.load(step).to(tl.float64) / tl.where(top > 0, top, 1.0).to(tl.float64)  # ds / d max|w|
    tl.store(out, (slope * tl.sum(pulls, 0) / tl.sum(ties, 0)).to(tl.float32))


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    weight, grad, peak, step, factor, out, size, high, slack, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight + at, mask=at < size, other=0.0)
    g = tl.load(grad + at, mask=at < size, other=0.0)
    s = tl.load(step)
    moves = tl.where(s > 0, 1.0, 0.0)  # a grid of step 0 does not
    within = tl.where(tl.abs(_scaled(x, s)) <= high + slack, moves, 0.0)
    sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    more = tl.where(tl.abs(x) == tl.load(peak), sign * tl.load(factor), 0.0)
    tl.store(out + at, _known(g * within + more, s), mask=at < size)
