"""The passes over all weights that a step makes on a GPU, each one Triton kernel for all layers: regularizer, tracker.

What kernels/csrc/weights.c is for CPUs, for per-tensor steps. By plain operations a ResNet-18 takes 1300 launches per
step for these, its own forward and backward pass 230. Sums go by blocks whose order is fixed, so a run
repeats to the last bit. The arithmetic, fp32, is that of the regularizer and the tracker in harness/oscillation; codes
are the same codes.

Importing this module needs Triton: harness/kernels/dispatch.py asks first.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
#: Added and taken away again, it leaves the nearest whole number, halves to even, of any fp32 below 2^22.
_ROUNDER: Any = tl.constexpr(12582912.0)


class Layers:
    """Tensors of fixed sizes, one per layer, for passes over all of them. `like` are such tensors, on the device."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._device, self._count = like[0].device, len(like)
        blocks = [-(-tensor.numel() // _BLOCK) for tensor in like]
        self._blocks = sum(blocks)
        counts = torch.tensor(blocks)
        layer_of = torch.repeat_interleave(torch.arange(len(like)), counts)
        ends = counts.cumsum(0)
        starts = (torch.arange(self._blocks) - (ends - counts)[layer_of]) * _BLOCK
        self._layer_of, self._starts = layer_of.to(self._device, torch.int32), starts.to(self._device)
        self._bounds = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(self._device, torch.int32)
        self._sizes = torch.tensor([tensor.numel() for tensor in like]).to(self._device)

    def _addresses(self, *columns: Sequence[Tensor]) -> Tensor:
        """Where tensors begin, int64 (columns, layers). Written anew for each pass: gradients move."""
        rows = [[tensor.data_ptr() for tensor in column] for column in columns]
        return torch.tensor(rows).to(self._device, non_blocking=True)

    def peaks(self, weights: Sequence[Tensor]) -> Tensor:
        """max|w| of each layer, fp32 (layers,)."""
        found = torch.zeros(self._count, dtype=torch.int32, device=self._device)
        _peaks[(self._blocks,)](self._addresses(weights), self._layer_of, self._starts, self._sizes, found, _BLOCK)
        return found.view(torch.float32)

    def regularize(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        steps: tuple[Tensor, Tensor],
        high: int,
        slack: float,
        graph: bool,
        strength: float,
    ) -> Tensor:
        """Add the regularizer's gradient to each of `gradients`; returns its value, shape (), fp64.

        steps: `peaks` and the steps that go with them. high: the largest code. slack: how far beyond it, in steps,
        a weight still has a gradient. graph: whether the step, a multiple of the peak, takes part in the gradient.
        """
        where, here = self._addresses(weights, gradients), (self._layer_of, self._starts, self._sizes)
        partial = torch.empty(3, self._blocks, dtype=torch.float32, device=self._device)
        value = torch.empty(self._count, dtype=torch.float64, device=self._device)
        factors = torch.empty(2, self._count, dtype=torch.float32, device=self._device)
        _regularizer_sums[(self._blocks,)](where, *here, *steps, partial, self._blocks, float(high), slack, _BLOCK)
        _regularizer_factors[(self._count,)](
            partial, self._bounds, self._sizes, *steps, value, factors, self._blocks, self._count, strength, graph, 256
        )
        _regularizer_apply[(self._blocks,)](where, *here, *steps, factors, self._count, float(high), slack, _BLOCK)
        return value.sum()

    def track(
        self,
        weights: Sequence[Tensor],
        steps: Tensor,
        ranges: Tensor,
        state: Sequence[Sequence[Tensor]],
        increment: float,
    ) -> None:
        """Update codes, directions, frequencies and counts.

        steps: fp32 (layers,). ranges: the lowest and highest codes, fp32 (2, layers). state: codes, directions (int8),
        frequencies (fp16), and counts (int64 ()) of flips and of oscillations, of each layer.
        """
        where, here = self._addresses(weights, *state), (self._layer_of, self._starts, self._sizes)
        _track[(self._blocks,)](where, *here, steps, ranges, self._count, increment, _BLOCK)


@triton.jit
def _whole(x):  # type: ignore[no-untyped-def]
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def _scaled(x, step):  # type: ignore[no-untyped-def]
    """In steps; an all-zero layer's are 0. A division that rounds as torch's does: codes depend on it."""
    return tl.div_rn(x, tl.where(step > 0, step, 1.0) + tl.zeros_like(x))


@triton.jit
def _peaks(where, layer_of, starts, sizes, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0)
    layer = tl.load(layer_of + block)
    at = tl.load(starts + block) + tl.arange(0, BLOCK)
    weight = tl.load(where + layer).to(tl.pointer_type(tl.float32))
    x = tl.load(weight + at, mask=at < tl.load(sizes + layer), other=0.0)
    # Of floats that are not negative the larger has the larger bits, and one that is not a number the largest.
    tl.atomic_max(out + layer, tl.max(tl.abs(x).to(tl.int32, bitcast=True), 0))


@triton.jit
def _regularizer_sums(  # type: ignore[no-untyped-def]
    where, layer_of, starts, sizes, peaks, steps, partial, blocks, high, slack, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    layer = tl.load(layer_of + block)
    at = tl.load(starts + block) + tl.arange(0, BLOCK)
    inside = at < tl.load(sizes + layer)
    x = tl.load(tl.load(where + layer).to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
    v = _scaled(x, tl.load(steps + layer))
    k = _whole(tl.minimum(tl.maximum(v, -high), high))
    within = tl.where(tl.abs(v) <= high + slack, 1.0, 0.0)
    ties = inside & (tl.abs(x) == tl.load(peaks + layer))
    tl.store(partial + block, tl.sum((k + v) * (k - v), 0))
    tl.store(partial + blocks + block, tl.sum(k * (k - v * within), 0))
    tl.store(partial + 2 * blocks + block, tl.sum(tl.where(ties, 1.0, 0.0), 0))


@triton.jit
def _regularizer_factors(  # type: ignore[no-untyped-def]
    partial, bounds, sizes, peaks, steps, value, factors, blocks, count, strength, graph, BLOCK: tl.constexpr
):
    """The sums of a layer, in the order of its blocks, and what each weight's part is multiplied by."""
    layer = tl.program_id(0)
    first, last = tl.load(bounds + layer), tl.load(bounds + layer + 1)
    step, peak = tl.load(steps + layer), tl.load(peaks + layer)
    values = tl.zeros((BLOCK,), tl.float64)
    pulls = tl.zeros((BLOCK,), tl.float64)
    ties = tl.zeros((BLOCK,), tl.float64)
    for begin in range(first, last, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        values += tl.load(partial + at, mask=at < last, other=0.0).to(tl.float64)
        pulls += tl.load(partial + blocks + at, mask=at < last, other=0.0).to(tl.float64)
        ties += tl.load(partial + 2 * blocks + at, mask=at < last, other=0.0).to(tl.float64)
    factor = 2.0 * strength / tl.load(sizes + layer).to(tl.float64)
    wide = step.to(tl.float64)
    tl.store(value + layer, 0.5 * factor * wide * wide * tl.sum(values, 0))
    tl.store(factors + layer, (factor * wide).to(tl.float32))
    slope = wide / tl.where(peak > 0, peak, 1.0).to(tl.float64)  # ds / d max|w|
    shared = factor * slope * wide * tl.sum(pulls, 0) / tl.sum(ties, 0)
    tl.store(factors + count + layer, tl.where(graph, shared, 0.0).to(tl.float32))


@triton.jit
def _regularizer_apply(  # type: ignore[no-untyped-def]
    where, layer_of, starts, sizes, peaks, steps, factors, count, high, slack, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    layer = tl.load(layer_of + block)
    at = tl.load(starts + block) + tl.arange(0, BLOCK)
    inside = at < tl.load(sizes + layer)
    x = tl.load(tl.load(where + layer).to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
    gradient = tl.load(where + count + layer).to(tl.pointer_type(tl.float32)) + at
    v = _scaled(x, tl.load(steps + layer))
    k = _whole(tl.minimum(tl.maximum(v, -high), high))
    within = tl.where(tl.abs(v) <= high + slack, 1.0, 0.0)
    more = (k * within - v) * tl.load(factors + layer)
    sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    largest = tl.abs(x) == tl.load(peaks + layer)
    more += tl.where(largest, sign * tl.load(factors + count + layer), 0.0)
    tl.store(gradient, tl.load(gradient, mask=inside) + more, mask=inside)


@triton.jit
def _track(  # type: ignore[no-untyped-def]
    where, layer_of, starts, sizes, steps, ranges, count, increment, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    layer = tl.load(layer_of + block)
    at = tl.load(starts + block) + tl.arange(0, BLOCK)
    inside = at < tl.load(sizes + layer)
    x = tl.load(tl.load(where + layer).to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
    code = tl.load(where + count + layer).to(tl.pointer_type(tl.int8)) + at
    direction = tl.load(where + 2 * count + layer).to(tl.pointer_type(tl.int8)) + at
    frequency = tl.load(where + 3 * count + layer).to(tl.pointer_type(tl.float16)) + at
    low, high = tl.load(ranges + layer), tl.load(ranges + count + layer)
    now = _whole(tl.minimum(tl.maximum(_scaled(x, tl.load(steps + layer)), low), high)).to(tl.int8)
    before = tl.load(code, mask=inside, other=0)
    # Few weights change in a step: what belongs to the others is neither read nor written.
    changed = inside & (now != before)
    change = tl.where(now > before, 1, -1)
    reversed_ = changed & (change * tl.load(direction, mask=changed, other=0).to(tl.int32) < 0)
    tl.store(code, now, mask=changed)
    tl.store(direction, change.to(tl.int8), mask=changed)
    often = tl.load(frequency, mask=reversed_, other=0.0).to(tl.float32) + increment
    tl.store(frequency, often.to(tl.float16), mask=reversed_)
    flips = tl.load(where + 4 * count + layer).to(tl.pointer_type(tl.int64))
    oscillations = tl.load(where + 5 * count + layer).to(tl.pointer_type(tl.int64))
    tl.atomic_add(flips, tl.sum(changed.to(tl.int64), 0))
    tl.atomic_add(oscillations, tl.sum(reversed_.to(tl.int64), 0))
