"""The oscillation regularizer for any training loop: its value and its gradient in closed form.

The formulas stand in harness/methods/oscillation.py, the method that is made of it.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.kernels import cpu, dispatch
from harness.oscillation.fused import Regularize
from harness.quantization import ClippedQuantizer, MaxAbsQuantizer, make_quantizer
from harness.quantization.autograd import BOUND_SLACK, inside
from harness.quantization.grid import safe_step
from harness.quantization.layers import weight_layers


@torch.no_grad()
def oscillation_penalty(weight: Tensor, quantizer: MaxAbsQuantizer, strength: float) -> tuple[Tensor, Tensor]:
    """The value of R for one layer, shape (), and its gradient, in the shape and type of `weight`.

    Sums run over the weights that share a step. Of a clipped quantizer, a weight outside the range has the
    clipped code and gradient 0 through the rounding. An all-zero tensor has value and gradient 0.
    """
    magnitude = weight.abs()
    dims = tuple(range(1 if quantizer.per_channel else 0, weight.dim()))
    peak = magnitude.amax(dim=dims, keepdim=quantizer.per_channel)
    step = quantizer.step_of(peak)
    scaled = weight / safe_step(step)
    code = scaled.round()
    within: Tensor | None = None
    if isinstance(quantizer, ClippedQuantizer):
        within = inside(scaled, *quantizer.levels)
        code = code.clamp_(*quantizer.levels)
    factor = 2.0 * strength / weight.numel()
    error = code - scaled
    # mean(q^2 - w^2) = mean(s^2 (k - v)(k + v)): the difference first, where nothing cancels.
    value = 0.5 * factor * ((code + scaled).mul_(error).sum(dim=dims) * step.flatten().square()).sum()
    through = error if within is None else code * within - scaled
    gradient = through * (factor * step)
    if quantizer.scale_gradient == "graph":
        slope = error if within is None else code - scaled * within
        pull = code.mul_(slope).sum(dim=dims, keepdim=quantizer.per_channel) * step
        # 1 where |w| attains its maximum, else 0; as floats, since bools run ten times slower on CPUs.
        largest = torch.eq(magnitude, peak, out=magnitude)
        ties = largest.sum(dim=dims, keepdim=quantizer.per_channel)
        step_slope = step / safe_step(peak)  # ds / d max|w|: 1/Q, times the ratio of a clipped range
        gradient.addcmul_(largest.mul_(weight.sign()), factor * step_slope * pull / ties)
    return value, gradient


@torch.no_grad()
def _add_all(
    weights: list[Tensor], gradients: list[Tensor], quantizers: list[MaxAbsQuantizer], strength: float
) -> list[Tensor]:
    """Add each layer's dR/dw to its gradient, in place, by plain tensor operations; the layers' values."""
    values = []
    for weight, gradient, quantizer in zip(weights, gradients, quantizers, strict=True):
        value, more = oscillation_penalty(weight, quantizer, strength)
        gradient.add_(more)
        values.append(value)
    return values


class _Layer:
    """A weight and its quantizer."""

    def __init__(self, weight: Tensor, quantizer: MaxAbsQuantizer) -> None:
        self.weight, self.quantizer = weight, quantizer
        self._served: tuple[int, ...] | None = None  # the strides of a weight that the native pass serves
        self._held = weight

    def gradient(self) -> Tensor:
        """The weight's gradient so far; zeros where the task's loss did not reach it."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        return self.weight.grad

    def enter(self, entry: cpu.Layer, rows: Tensor) -> bool:
        """Prepare the native pass over this layer; False where it does not serve, and the layer is left out."""
        weight, gradient, quantizer = self.weight, self.gradient(), self.quantizer
        entry.size = 0
        if weight.dtype != torch.float32 or gradient.dtype != torch.float32:
            return False
        if not (weight.is_cpu and weight.stride() == gradient.stride() == self._served):
            if not dispatch.serves(weight, gradient):
                return False
            self._served = weight.stride()
        entry.groups = len(weight) if quantizer.per_channel else 1
        entry.high, entry.clipped = quantizer.levels.high, quantizer.clipped_at > 0
        entry.graph = quantizer.scale_gradient == "graph"
        self._held = quantizer.ratios(rows[2, : entry.groups])
        entry.ratio = self._held.data_ptr()
        entry.w, entry.grad, entry.size = weight.data_ptr(), gradient.data_ptr(), weight.numel() // entry.groups
        return True


class OscillationRegularizer:
    """The regularizer for a training loop of one's own: call `add_gradient()` between backward and the step.

    model: any module; its linear and convolution layers are regularized, but for the `exclude` globs.
    bits: the bit-width to prepare for, 2 to 8. strength: lambda, >= 0. fused: False for plain tensor operations;
    otherwise one pass over all weights where there is one (harness/kernels).
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        strength: float,
        quantizer: QuantizerConfig | None = None,
        scale_gradient: Literal["graph", "detached"] = "graph",
        exclude: Iterable[str] = (),
        fused: bool = True,
    ) -> None:
        self.strength = strength
        knobs = quantizer or QuantizerConfig()
        weights = {id(layer.weight): layer.weight for layer in weight_layers(model, exclude).values()}
        self._layers = [
            _Layer(weight, make_quantizer(knobs, bits, scale_gradient).to(weight.device).fit(weight))
            for weight in weights.values()  # by identity: a shared weight counts once
            if weight.requires_grad
        ]
        if not self._layers:
            raise UserError("the oscillation regularizer finds no trainable linear or convolution layer in this model")
        self._fused = fused
        self._table = cpu.Table([layer.weight for layer in self._layers], knobs.granularity == "channel")
        self._on_gpu: Regularize | None = None
        if self._fused and dispatch.on_gpu(self._layers[0].weight.device):
            pairs = [(layer.weight, layer.quantizer) for layer in self._layers]
            self._on_gpu = Regularize(*zip(*pairs, strict=True))

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Add dR/dw to each weight's `.grad`, in place; returns R, shape (), without synchronising."""
        if self._on_gpu is not None:
            value = self._on_gpu([layer.gradient() for layer in self._layers], self.strength)
            if value is not None:
                return value
        plain, values = self._layers, []
        if self._fused and cpu.library() is not None:
            places, rows = zip(self._layers, self._table.entries, strict=True), self._table.rows
            plain = [layer for layer, entry in places if not layer.enter(entry, rows)]
            if len(plain) < len(self._layers):  # not on a GPU, where a value from here would be waited for
                values.append(self._table.regularize(self.strength, BOUND_SLACK))
        if plain:
            weights, gradients = [layer.weight for layer in plain], [layer.gradient() for layer in plain]
            values += _add_all(weights, gradients, [layer.quantizer for layer in plain], self.strength)
        return torch.stack(values).sum()
