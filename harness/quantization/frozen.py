"""A quantizer that wraps another one and keeps frozen weights at fixed integer codes.

On the CPU it uses passes in C (harness/kernels/csrc/freezing.c), elsewhere plain operations.
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
    """`s * code` where `frozen`, and the values of the wrapped quantizer elsewhere. Buffers have the weight's shape.

    A frozen weight has gradient 0 and gives the step the gradient `code`. fused: False for plain operations only.
    """

    frozen: Tensor
    code: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, fused: bool = True) -> None:
        super().__init__(quantizer.bits, quantizer.per_channel, quantizer.kind)
        self.fused = fused
        # With this attribute name, parameters inside still end in `weight_quantizer.learned_step`. By that ending their
        # own method finds them in `param_options`.
        self.weight_quantizer = quantizer
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("code", torch.zeros_like(weight, dtype=torch.int8))
        self.fitted = quantizer.fitted

    def described(self) -> tuple[str, str]:
        return self.weight_quantizer.described()

    def start_from(self, weight: Tensor) -> None:
        self.weight_quantizer.fit(weight)

    def freeze(self, wanted: Tensor, average: Tensor) -> None:
        """Freeze the `wanted` weights, bool (O, ...), at their rounded average code; frozen ones stay unchanged."""
        new = wanted & ~self.frozen
        self.code.copy_(torch.where(new, average.round(), self.code))
        self.frozen |= new

    @torch.no_grad()
    def settle(
        self, codes: Tensor, average: Tensor, momentum: float, frequency: Tensor, decay: float, threshold: float | None
    ) -> None:
        """Update the averages, fp32, with the present codes, then freeze the weights that oscillate too often.

        These are the weights with fp16 `frequency * decay` above the threshold. threshold: None to freeze nothing.
        """
        if self.fused and dispatch.serves(average, like=(codes, frequency, self.frozen, self.code)):
            limit = _NEVER if threshold is None else _limit(decay, threshold)
            cpu.settle(codes, average, frequency, self.frozen, self.code, momentum, limit)
            return
        average += (codes - average).mul_(momentum)  # not lerp_: rounds after each operation, as in C
        if threshold is not None:
            self.freeze(frequency * decay > threshold, average)

    def frozen_or(self, weight: Tensor, others: Tensor) -> Tensor:
        """`step * code` for frozen weights, `others` elsewhere."""
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
        """`forward` by plain operations."""
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
    """The quantizer for another bit-width; it rounds frozen weights from their frozen values."""

    def __init__(self, source: FrozenQuantizer, quantizer: WeightQuantizer) -> None:
        super().__init__(quantizer.bits, quantizer.per_channel, quantizer.kind)
        self.source, self.quantizer = source, quantizer

    def step(self, weight: Tensor) -> Tensor:
        return self.quantizer.step(self.source.frozen_or(weight, weight))

    def forward(self, weight: Tensor) -> Tensor:
        return self.quantizer(self.source.frozen_or(weight, weight))


def _is_max_abs(quantizer: WeightQuantizer) -> TypeGuard[MaxAbsQuantizer]:
    """Whether a quantizer computes as MaxAbsQuantizer does, with native passes allowed."""
    return (
        isinstance(quantizer, MaxAbsQuantizer)
        and quantizer.fused
        and type(quantizer).forward is MaxAbsQuantizer.forward
        and type(quantizer).step is MaxAbsQuantizer.step
    )


def _by_rows(step: Tensor, weight: Tensor) -> bool:
    """Whether a step is per tensor or per output channel, in fp32, as the passes in C need it."""
    rows = step.dim() == weight.dim() and step.numel() == weight.shape[0] == step.shape[0]
    return step.dtype == torch.float32 and (step.numel() == 1 or rows)


#: Larger than the bit pattern of any finite fp16 value.
_NEVER = 0xFFFF


@cache
def _halves() -> Tensor:
    """All finite fp16 values >= 0, in the order of their bit patterns."""
    return torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)


@lru_cache(maxsize=4)  # one for all layers of a step
def _limit(decay: float, threshold: float) -> int:
    """The bit pattern of the smallest fp16 frequency whose product with `decay` exceeds the threshold."""
    return int((_halves() * decay <= threshold).sum())


class _Hold:
    """`step * code` for held weights, `others` elsewhere."""

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
    """The same around a max-abs quantizer, whose step depends on the largest weights."""

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
