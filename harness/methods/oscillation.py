"""The oscillation regularizer. Wenshøj, Pepin, Selvan, TMLR 2025 (arXiv 2502.00490, section 4).

The network trains in float. To the task loss is added, over quantized layers l of n_l weights,

    R = strength * sum_l mean_i( q_i^2 - w_i^2 ),   q = s k,  k = round(w / s),  s = max|w| / Q,

whose straight-through gradient, the scale left in the graph, is in closed form (`oscillation_penalty`)

    dR/dw_i = (2 strength / n) [ q_i - w_i + [i attains max|w|] sign(w_i) / (Q ties) * sum_j q_j (k_j - w_j / s) ].

The first term pushes each weight away from its nearest grid point, towards the decision threshold, as QAT's
gradient does. The second moves the step through the largest weights; without it the effect is lost at 2 bits.

strength: the paper's lambda, >= 0, tuned per task (about 1 to 100 for Adam at the sizes of this harness).
Deviations: none known. The gradient is added without autograd; tests/reference holds the plain loss.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness import native
from harness.calibration import Calibration
from harness.compilation import compiled
from harness.errors import UserError
from harness.knobs import QuantizerKnobs
from harness.layers import weight_layers
from harness.methods.base import Method, MethodConfig, Step
from harness.quantization import ClippedQuantizer, MaxAbsQuantizer, make_quantizer
from harness.quantization.grid import safe_step
from harness.quantization.rounding import inside


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
    """A weight, its quantizer, and what the native pass over it needs."""

    def __init__(self, weight: Tensor, quantizer: MaxAbsQuantizer) -> None:
        self.weight, self.quantizer = weight, quantizer
        self._passes: native.Passes | None = None

    def gradient(self) -> Tensor:
        """The weight's gradient so far; zeros where the task's loss did not reach it."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        return self.weight.grad

    def add_natively(self, strength: float) -> Tensor | None:
        """Add dR/dw to the gradient by the compiled pass; returns R, or None where it does not serve this layer."""
        weight, gradient, quantizer = self.weight, self.gradient(), self.quantizer
        alike = weight.dtype == gradient.dtype == torch.float32
        if not alike or not native.serves(weight, gradient):
            return None
        if self._passes is None:
            self._passes = native.Passes(weight.numel(), weight.shape[0] if quantizer.per_channel else 1)
        peak = self._passes.peaks(weight)
        step = quantizer.step_of(quantizer.shaped(peak, weight)).flatten()
        factor = 2.0 * strength / weight.numel()
        high = quantizer.levels.high if isinstance(quantizer, ClippedQuantizer) else -1
        graph = quantizer.scale_gradient == "graph"
        return self._passes.add_gradient(weight, gradient, peak, step, factor, high, graph)


class OscillationRegularizer:
    """The regularizer for a training loop of one's own: call `add_gradient()` between backward and the step.

    model: any module; its linear and convolution layers are regularized, but for the `exclude` globs.
    bits: the bit-width to prepare for, 2 to 8. strength: lambda, >= 0. fused: False for plain tensor operations;
    None also uses the compiled pass of harness/native.c on the CPU; True also compiles the pass on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        strength: float,
        quantizer: QuantizerKnobs | None = None,
        scale_gradient: Literal["graph", "detached"] = "graph",
        exclude: Iterable[str] = (),
        fused: bool | None = None,
    ) -> None:
        self.strength = strength
        knobs = quantizer or QuantizerKnobs()
        weights = {id(layer.weight): layer.weight for layer in weight_layers(model, exclude).values()}
        self._layers = [
            _Layer(weight, make_quantizer(knobs, bits, scale_gradient).to(weight.device).fit(weight))
            for weight in weights.values()  # by identity: a shared weight counts once
            if weight.requires_grad
        ]
        if not self._layers:
            raise UserError("the oscillation regularizer finds no trainable linear or convolution layer in this model")
        self._fused = fused is not False
        device = self._layers[0].weight.device
        self._add_all = compiled(_add_all, device) if fused and device.type == "cuda" else _add_all

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Add dR/dw to each weight's `.grad`, in place; returns R, shape (), without synchronising."""
        values, plain = [], []
        for layer in self._layers:
            value = layer.add_natively(self.strength) if self._fused else None
            if value is None:
                plain.append(layer)
            else:
                values.append(value)
        if plain:
            weights, gradients = [layer.weight for layer in plain], [layer.gradient() for layer in plain]
            values += self._add_all(weights, gradients, [layer.quantizer for layer in plain], self.strength)
        return torch.stack(values).sum()


class Oscillation(Method):
    """Float training with the regularizer at the target bit; deployed by rounding to nearest."""

    class Config(MethodConfig):
        name: Literal["oscillation"] = "oscillation"
        strength: float = Field(1.0, ge=0, le=1e6, description="the paper's lambda; tune it")
        scale_gradient: Literal["graph", "detached"] = Field(
            "graph", description="whether s = max|w| / Q takes part in the gradient (the paper's code: graph)"
        )

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(strength=3.0)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        self._regularizer = OscillationRegularizer(
            model,
            self.context.bits(),
            self.config.strength,
            self.context.quantizer,
            self.config.scale_gradient,
            self.context.exclude,
            self.context.fused,
        )

    def after_backward(self, step: Step) -> Tensor | float:
        if self.config.strength == 0:
            return 0.0
        return self._regularizer.add_gradient()
