"""When the passes of harness/kernels/triton_layers.py take the place of plain operations, and what they are told."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from harness.kernels import dispatch
from harness.quantization import MaxAbsQuantizer, WeightQuantizer
from harness.quantization.autograd import BOUND_SLACK
from harness.quantization.quantizer import steps_of

if TYPE_CHECKING:
    from harness.kernels.triton_layers import Layers


def _layers(weights: Sequence[Tensor]) -> "Layers":
    from harness.kernels.triton_layers import Layers

    return Layers(weights)


class Regularize:
    """The oscillation regularizer's pass over weights with a max-abs quantizer each, of one bit-width."""

    def __init__(self, weights: Sequence[Tensor], quantizers: Sequence[MaxAbsQuantizer]) -> None:
        self._weights, self._quantizers, self._table = weights, quantizers, _layers(weights)
        plain = any(quantizer.per_channel for quantizer in quantizers)
        self._serves = not plain and all(weight.dtype == torch.float32 for weight in weights)

    def __call__(self, gradients: Sequence[Tensor], strength: float) -> Tensor | None:
        """Add the gradient in place; the value, shape (), or None where the pass does not serve and did nothing."""
        pairs = zip(self._weights, gradients, strict=True)
        if not (self._serves and all(_fp32_alike(weight, gradient) for weight, gradient in pairs)):
            return None
        one = self._quantizers[0]
        peaks = self._table.peaks(self._weights)
        steps, graph = steps_of(self._quantizers, peaks), one.scale_gradient == "graph"
        slack = BOUND_SLACK if one.clipped_at > 0 else float("inf")
        return self._table.regularize(self._weights, gradients, (peaks, steps), one.levels.high, slack, graph, strength)


_W = TypeVar("_W", bound="Watched")


class Watched(Protocol):
    """What the tracker keeps of a layer: see `harness.oscillation`. STATE: its tensors' names, in the pass's order."""

    STATE: ClassVar[tuple[str, ...]]
    code: Tensor

    def read(self) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer that decides the codes, and the weight that it sees."""


class Track:
    """The tracker's pass. Tables are kept for the sets of layers that were served."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, ...], Layers] = {}
        self._ranges: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def __call__(self, watches: Sequence[_W], increment: float) -> list[_W]:
        """Bring the layers that the pass serves up to date; returns the others."""
        served, others = [], []
        for watch in watches:
            quantizer, weight = watch.read()
            if _tracked(watch, quantizer, weight):
                served.append((watch, quantizer, weight))
            else:
                others.append(watch)
        if served:
            self._track(served, increment)
        return others

    def _track(self, served: Sequence[tuple[Watched, WeightQuantizer, Tensor]], increment: float) -> None:
        watches, quantizers, weights = zip(*served, strict=True)
        key = tuple(id(watch) for watch in watches)
        table = self._tables.get(key) or self._tables.setdefault(key, _layers(weights))
        ranges = tuple(tuple(quantizer.levels) for quantizer in quantizers)
        if ranges not in self._ranges:
            self._ranges[ranges] = torch.tensor(ranges, dtype=torch.float32).T.contiguous().to(weights[0].device)
        state = [[getattr(watch, field) for watch in watches] for field in watches[0].STATE]
        table.track(weights, _steps(table, quantizers, weights), self._ranges[ranges], state, increment)


def _steps(table: "Layers", quantizers: Sequence[WeightQuantizer], weights: Sequence[Tensor]) -> Tensor:
    """The layers' steps, fp32 (layers,)."""
    if all(isinstance(quantizer, MaxAbsQuantizer) for quantizer in quantizers):
        return steps_of([q for q in quantizers if isinstance(q, MaxAbsQuantizer)], table.peaks(weights))
    pairs = zip(quantizers, weights, strict=True)
    return torch.stack([quantizer.step(weight).reshape(()) for quantizer, weight in pairs]).float()


def _tracked(watch: Watched, quantizer: WeightQuantizer, weight: Tensor) -> bool:
    """Whether a layer's codes are a weight's, over one step, rounded, as the pass finds them."""
    usual = type(quantizer).codes is WeightQuantizer.codes and not quantizer.per_channel
    return usual and weight.dtype == torch.float32 and dispatch.alike_in_memory(weight, watch.code)


def _fp32_alike(weight: Tensor, gradient: Tensor) -> bool:
    return gradient.dtype == torch.float32 and dispatch.alike_in_memory(weight, gradient)
