"""Fused passes over all layers for the regularizer and the tracker: in C on a CPU, in Triton on a GPU.

`regularizer_pass` and `tracker_pass` choose. A pass returns the layers that it does not support; the caller handles
these by plain operations.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from harness.kernels import dispatch
from harness.kernels.cpu_layers import Layer, Table
from harness.quantization import MaxAbsQuantizer, WeightQuantizer
from harness.quantization.autograd import BOUND_SLACK

if TYPE_CHECKING:
    from harness.kernels.triton_layers import Layers

#: A weight, its gradient so far, and its quantizer.
Regularized = tuple[Tensor, Tensor, MaxAbsQuantizer]


class Watched(Protocol):
    """The tracker's state of a layer. STATE: the names of its tensors, in the order that the passes use."""

    STATE: ClassVar[tuple[str, ...]]
    code: Tensor
    direction: Tensor
    frequency: Tensor
    flips: Tensor
    oscillations: Tensor

    def read(self) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer that determines the codes, and its input, the effective weight."""


_W = TypeVar("_W", bound=Watched)


class RegularizerPass:
    """The oscillation regularizer's pass. This base class supports no layer."""

    def add_gradient(self, layers: list[Regularized], strength: float) -> tuple[list[Tensor], list[Regularized]]:
        """Add each dR/dw in place. Returns values, shape (), that sum to R, and the layers that are not supported.

        R is that of the supported layers. layers: those that the pass was made for, in the same order.
        """
        return [], layers


class TrackerPass:
    """The tracker's pass. This base class supports no layer."""

    def update(self, watches: list[_W], increment: float) -> list[_W]:
        """Update codes, directions, frequencies and counters; returns the layers that are not supported.

        increment: added to the frequency of a weight that oscillates.
        """
        return watches


def regularizer_pass(weights: Sequence[Tensor], per_channel: bool, fused: bool) -> RegularizerPass:
    """The pass for these weights. fused: False for plain operations only."""
    if not fused:
        return RegularizerPass()
    return (
        _RegularizerInTriton(weights) if dispatch.on_gpu(weights[0].device) else _RegularizerInC(weights, per_channel)
    )


def tracker_pass(watches: Iterable[Watched], fused: bool) -> TrackerPass:
    """The pass for these layers. fused: False for plain operations only."""
    if not fused:
        return TrackerPass()
    watches = list(watches)
    return _TrackerInTriton() if dispatch.on_gpu(watches[0].code.device) else _TrackerInC(watches)


class _RegularizerInC(RegularizerPass):
    def __init__(self, weights: Sequence[Tensor], per_channel: bool) -> None:
        self._table = Table(weights, per_channel)

    def add_gradient(self, layers: list[Regularized], strength: float) -> tuple[list[Tensor], list[Regularized]]:
        rest, ratios = [], []  # keeps tensors alive until the pass has read them
        for layer, entry in zip(layers, self._table.entries, strict=True):
            weight, gradient, quantizer = layer
            entry.size = 0
            if not dispatch.serves(weight, gradient):
                rest.append(layer)
                continue
            entry.groups = len(weight) if quantizer.per_channel else 1
            entry.high, entry.clipped = quantizer.levels.high, quantizer.clipped_at > 0
            entry.graph = quantizer.scale_gradient == "graph"
            ratios.append(quantizer.ratios(self._table.rows[2, : entry.groups]))
            entry.w, entry.grad, entry.ratio = weight.data_ptr(), gradient.data_ptr(), ratios[-1].data_ptr()
            entry.size = weight.numel() // entry.groups
        served = len(rest) < len(layers)  # none is on a GPU; a value from here would synchronise it
        return ([self._table.regularize(strength, BOUND_SLACK)] if served else []), rest


class _RegularizerInTriton(RegularizerPass):
    """Supports all layers or none. All quantizers have the same bit-width."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._table = _triton_layers(weights)

    def add_gradient(self, layers: list[Regularized], strength: float) -> tuple[list[Tensor], list[Regularized]]:
        weights, gradients, quantizers = zip(*layers, strict=True)
        if not all(dispatch.serves_on_gpu(w, grad, per_channel=q.per_channel) for w, grad, q in layers):
            return [], layers
        one, peaks = quantizers[0], self._table.peaks(weights)
        steps, graph = _steps_of(quantizers, peaks), one.scale_gradient == "graph"
        slack = BOUND_SLACK if one.clipped_at > 0 else float("inf")
        return [self._table.regularize(weights, gradients, (peaks, steps), one.levels.high, slack, graph, strength)], []


class _TrackerInC(TrackerPass):
    def __init__(self, watches: Sequence[Watched]) -> None:
        per_channel = any(watch.read()[0].per_channel for watch in watches)
        self._table = Table([watch.code for watch in watches], per_channel)

    def update(self, watches: list[_W], increment: float) -> list[_W]:
        rest, read = [], []  # keeps tensors alive until the pass has read them
        for watch, entry in zip(watches, self._table.entries, strict=True):
            entry.size, (quantizer, weight) = 0, watch.read()
            kept = self._enter_codes(entry, watch, quantizer, weight)
            if kept is None:
                rest.append(watch)
                continue
            read.append((weight, kept))
            entry.w, entry.size = weight.data_ptr(), weight.numel() // entry.groups
            for field in watch.STATE:
                setattr(entry, field, getattr(watch, field).data_ptr())
        if read:
            self._table.track(increment)
        return rest

    def _enter_codes(self, entry: Layer, watch: Watched, quantizer: WeightQuantizer, weight: Tensor) -> Tensor | None:
        """The tensor that gives the pass the codes: codes, steps or their ratios; None for an unsupported layer."""
        state, rows = (watch.code, watch.direction, watch.frequency), self._table.rows
        entry.codes, entry.groups = None, 1
        if not (_rounded(quantizer) and dispatch.serves(weight, like=state)):
            if not dispatch.serves(like=(weight, *state)):
                return None
            codes = quantizer.codes(weight)
            entry.codes = codes.data_ptr()
            return codes if dispatch.serves(like=(codes, watch.code)) else None
        entry.groups = len(weight) if quantizer.per_channel else 1
        entry.low, entry.high = quantizer.levels
        if not isinstance(quantizer, MaxAbsQuantizer):
            steps = quantizer.step(weight).flatten()
            entry.step, entry.ratio = steps.data_ptr(), None
            return steps
        if entry.groups > rows.shape[1]:  # the quantizer was attached after the tracker was made
            return None
        ratios = quantizer.ratios(rows[2, : entry.groups])
        entry.step, entry.ratio = rows[1].data_ptr(), ratios.data_ptr()
        return ratios


class _TrackerInTriton(TrackerPass):
    """Keeps one table per set of supported layers."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, ...], Layers] = {}
        self._ranges: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def update(self, watches: list[_W], increment: float) -> list[_W]:
        served, rest = [], []
        for watch in watches:
            quantizer, weight = watch.read()
            serves = dispatch.serves_on_gpu(weight, per_channel=quantizer.per_channel, like=(watch.code,))
            if serves and _rounded(quantizer):
                served.append((watch, quantizer, weight))
            else:
                rest.append(watch)
        if served:
            self._track(served, increment)
        return rest

    def _track(self, served: Sequence[tuple[Watched, WeightQuantizer, Tensor]], increment: float) -> None:
        watches, quantizers, weights = zip(*served, strict=True)
        key = tuple(id(watch) for watch in watches)
        table = self._tables.get(key) or self._tables.setdefault(key, _triton_layers(weights))
        ranges = tuple(tuple(quantizer.levels) for quantizer in quantizers)
        if ranges not in self._ranges:
            self._ranges[ranges] = torch.tensor(ranges, dtype=torch.float32).T.contiguous().to(weights[0].device)
        state = [[getattr(watch, field) for watch in watches] for field in watches[0].STATE]
        table.track(weights, _steps(table, quantizers, weights), self._ranges[ranges], state, increment)


def _triton_layers(weights: Sequence[Tensor]) -> "Layers":
    from harness.kernels.triton_layers import Layers  # needs Triton

    return Layers(weights)


def _steps_of(quantizers: Sequence[MaxAbsQuantizer], peaks: Tensor) -> Tensor:
    """The steps of per-tensor quantizers, (N,), from max|w| of each one's weight, (N,)."""
    first = quantizers[0]
    if all(type(each) is MaxAbsQuantizer and each.levels == first.levels for each in quantizers):
        return first.step_of(peaks)
    return torch.stack([each.step_of(peak).reshape(()) for each, peak in zip(quantizers, peaks, strict=True)])


def _steps(table: "Layers", quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor]) -> Tensor:
    """The steps of the layers, fp32 (layers,)."""
    if all(isinstance(quantizer, MaxAbsQuantizer) for quantizer in quantizers):
        return _steps_of([q for q in quantizers if isinstance(q, MaxAbsQuantizer)], table.peaks(weights))
    pairs = zip(quantizers, weights, strict=True)
    return torch.stack([quantizer.step(weight).reshape(()) for quantizer, weight in pairs]).float()


def _rounded(quantizer: WeightQuantizer) -> bool:
    """Whether codes are round(weight / step), as the passes compute them."""
    return type(quantizer).codes is WeightQuantizer.codes
