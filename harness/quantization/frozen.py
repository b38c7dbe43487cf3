"""A quantizer around another one that holds some weights at integer codes of their own.

On the CPU its work is a few passes in C (harness/kernels/csrc/freezing.c), elsewhere plain operations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeGuard

import torch
from torch import Tensor

from harness.kernels import cpu, dispatch
from harness.quantization.autograd import BOUND_SLACK, by_passes
from harness.quantization.quantizer import KeepScale, MaxAbsQuantizer, WeightQuantizer


class FrozenQuantizer(WeightQuantizer):
    """`s * code` where `frozen`, and what the quantizer inside gives elsewhere. Buffers like the weight.

    The gradient of a frozen weight is 0; that of the step from it is `code`. fused: False for plain operations only.
    """

    frozen: Tensor
    code: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, fused: bool = True) -> None:
        super().__init__(quantizer.bits, quantizer.per_channel, quantizer.kind)
        self.fused = fused
        # By this name the parameters inside keep the end of theirs, `weight_quantizer.learned_step`, by which
        # the method that they belong to gives them their options.
        self.weight_quantizer = quantizer
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("code", torch.zeros_like(weight, dtype=torch.int8))
        self.fitted = quantizer.fitted

    def described(self) -> tuple[str, str]:
        return self.weight_quantizer.described()

    def start_from(self, weight: Tensor) -> None:
        self.weight_quantizer.fit(weight)

    def freeze(self, wanted: Tensor, average: Tensor) -> None:
        """Freeze further weights, bool (O, ...), at their average code; what is frozen stays as it is."""
        new = wanted & ~self.frozen
        self.code.copy_(torch.where(new, average.round(), self.code))
        self.frozen |= new

    @torch.no_grad()
    def settle(
        self, codes: Tensor, average: Tensor, momentum: float, frequency: Tensor, decay: float, threshold: float | None
    ) -> None:
        """Move the averages, fp32, to the present codes by `momentum`, then freeze what changes too often.

        That is where fp16 `frequency * decay` exceeds the threshold; None as long as nothing freezes.
        """
        if self.fused and dispatch.serves(average, like=(codes, frequency, self.frozen, self.code)):
            limit = _NEVER if threshold is None else _limit(decay, threshold)
            cpu.settle(codes, average, frequency, self.frozen, self.code, momentum, limit)
            return
        average += (codes - average).mul_(momentum)  # rounded after each operation, not lerp_: as the pass in C
        if threshold is not None:
            self.freeze(frequency * decay > threshold, average)

    def frozen_or(self, weight: Tensor, others: Tensor) -> Tensor:
        """Frozen weights by the present step, `others` elsewhere."""
        return torch.where(self.frozen, self.step(weight) * self.code, others)

    def step(self, weight: Tensor) -> Tensor:
        return self.weight_quantizer.step(weight)

    def forward(self, weight: Tensor) -> Tensor:
        if not self._native(weight):
            return self.plain(weight)
        inner = self.weight_quantizer
        if _is_max_abs(inner):
            return by_passes(_HoldMaxAbs(inner, self.plain), weight, self.frozen, self.code)
        others, step = inner(weight), inner.step(weight)
        hold = _Hold()
        if _by_rows(step, weight) and dispatch.serves(others, like=(self.frozen,)):
            return by_passes(hold, others, step, self.frozen, self.code)
        return hold.plain(others, step, self.frozen, self.code)

    def plain(self, weight: Tensor) -> Tensor:
        """The same by plain operations."""
        return self.frozen_or(weight, self.weight_quantizer(weight))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        inner = self.weight_quantizer
        if self._native(weight) and type(inner).codes is WeightQuantizer.codes:
            step = inner.step_of(inner.peaks(weight)) if _is_max_abs(inner) else inner.step(weight)
            if _by_rows(step, weight):
                return cpu.held_codes(weight, self.frozen, self.code, step.contiguous(), *inner.levels)
        return torch.where(self.frozen, self.code, inner.codes(weight))

    def _native(self, weight: Tensor) -> bool:
        return self.fused and dispatch.serves(weight, like=(self.frozen, self.code))

    def at_bits(self, bits: int, scale: KeepScale) -> WeightQuantizer:
        return self if bits == self.bits else FrozenElsewhere(self, self.weight_quantizer.at_bits(bits, scale))


class FrozenElsewhere(WeightQuantizer):
    """A quantizer for another bit-width, which frozen weights enter by their values."""

    def __init__(self, source: FrozenQuantizer, quantizer: WeightQuantizer) -> None:
        super().__init__(quantizer.bits, quantizer.per_channel, quantizer.kind)
        self.source, self.quantizer = source, quantizer

    def step(self, weight: Tensor) -> Tensor:
        return self.quantizer.step(self.source.frozen_or(weight, weight))

    def forward(self, weight: Tensor) -> Tensor:
        return self.quantizer(self.source.frozen_or(weight, weight))


def _is_max_abs(quantizer: WeightQuantizer) -> TypeGuard[MaxAbsQuantizer]:
    """Whether its passes are those of MaxAbsQuantizer, and wanted."""
    return (
        isinstance(quantizer, MaxAbsQuantizer)
        and quantizer.fused
        and type(quantizer).forward is MaxAbsQuantizer.forward
        and type(quantizer).step is MaxAbsQuantizer.step
    )


def _by_rows(step: Tensor, weight: Tensor) -> bool:
    """Whether a step is one for all or one for each first index of the weight, as passes in C take it."""
    rows = step.dim() == weight.dim() and step.numel() == weight.shape[0] == step.shape[0]
    return step.dtype == torch.float32 and (step.numel() == 1 or rows)


#: Above the bits of all halves that are numbers.
_NEVER = 0xFFFF


@cache
def _halves() -> Tensor:
    """All finite halves that are not negative, by their bits."""
    return torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)


@lru_cache(maxsize=4)  # one for all layers of a step
def _limit(decay: float, threshold: float) -> int:
    """The bits of the first half whose product with `decay` exceeds the threshold, by the plain operations."""
    return int((_halves() * decay <= threshold).sum())


class _Hold:
    """Held weights by their codes and the step, others as they are given."""

    def forward(self, others: Tensor, step: Tensor, held: Tensor, code: Tensor) -> Tensor:
        return cpu.hold(others, held, code, step.contiguous())

    def backward(
        self, gradient: Tensor, others: Tensor, step: Tensor, held: Tensor, code: Tensor
    ) -> tuple[Tensor | None, ...]:
        of_others, sums = cpu.hold_backward(dispatch.alike(gradient, held), held, code, step.numel())
        return of_others, sums.float().view(step.shape), None, None

    def plain(self, others: Tensor, step: Tensor, held: Tensor, code: Tensor) -> Tensor:
        return torch.where(held, step * code, others)


@dataclass
class _HoldMaxAbs:
    """The same around a max-abs quantizer, whose step has its gradient from the largest weights."""

    inner: MaxAbsQuantizer
    whole: Callable[[Tensor], Tensor]  # the plain forward pass of the quantizer around it

    def forward(self, weight: Tensor, held: Tensor, code: Tensor) -> Tensor:
        step = self.inner.step_of(self.inner.peaks(weight)).flatten()
        others = cpu.quantize(weight, step, self.inner.clipped_at)
        return cpu.hold(others, held, code, step, out=others)

    def backward(self, gradient: Tensor, weight: Tensor, held: Tensor, code: Tensor) -> tuple[Tensor | None, ...]:
        inner = self.inner
        peak = inner.peaks(weight)
        step = inner.step_of(peak).flatten()
        others, sums = cpu.hold_backward(dispatch.alike(gradient, held), held, code, step.numel())
        both, graph = (peak.flatten(), step), inner.scale_gradient == "graph"
        result = cpu.quantize_backward(weight, others, *both, inner.clipped_at, BOUND_SLACK, graph, sums)
        return result, None, None

    def plain(self, weight: Tensor, held: Tensor, code: Tensor) -> Tensor:
        return self.whole(weight)
