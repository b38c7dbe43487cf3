"""Oscillation dampening. Nagel, Fournarakis, Bondarenko, Blankevoort, ICML 2022 (arXiv 2203.11086, section 4.1).

A regularizer for quantization-aware training that pulls each weight to its own grid point, away from the thresholds.

Equations. The term added to the task loss, over quantized layers, is

    R = strength(t) * sum_layers agg( ( sg[q(w)] - clip(w, s n, s p) )^2 ).

sg stops the gradient; n and p are the lowest and highest code of the grid. For a weight outside the range, q(w) and
the clip are the same bound, so it is not pulled. The step s has a gradient only through these bounds, so it is not
pulled either. agg is taken over a weight (O, ...): `kernel_mean` averages over all dimensions but the output channels
and sums over the channels; `mean` and `sum` run over all entries. With T steps in total and t0 = start T, the strength
is 0 until t0, and then

    strength(t) = strength / 2 * (1 - cos(pi (t - t0) / (T - t0))).

In one dimension, with the task loss (q(w) - w*)^2 / 2, oscillation stops if and only if strength > |w* - q(w*)| / s.

Stacks: it comes after the method that quantizes the weights, [lsq, dampening] or [ste, dampening], and reads the
quantizer in each layer's slot. If the slot is empty, the network trains in float, and the penalty uses the default
quantizer at the target bit. Float weights are then pulled to the grid: the opposite of what `oscillation` does. After
`freezing`, q(w) of a frozen weight is its frozen value, so the latent weight is pulled to that value.

Defaults: strength 0.1, start 0.25, kernel_mean, from the authors' released code (Qualcomm-AI-research/
oscillations-qat).

Deviations: all quantized layers are dampened (theirs: those of 4 bits or fewer).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.kernels import cpu, dispatch
from harness.methods.base import Calibration, Method, MethodConfig, Step, default_quantizer
from harness.quantization import MaxAbsQuantizer, WeightQuantizer
from harness.quantization.autograd import ClosedForm, by_passes
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.learned_step import on_plain_grid
from harness.quantization.slots import SlotTakenError, Unfilled

Aggregation = Literal["kernel_mean", "mean", "sum"]


class Dampening(Method):
    """A penalty on the distance of each weight from its grid point, on top of a weight quantizer."""

    kind, acts_on = "regularizer", "weights"

    class Config(MethodConfig):
        name: Literal["dampening"] = "dampening"
        strength: float = Field(0.1, ge=0, le=1e6, description="lambda at the end of training (released code: 0.1)")
        start: float = Field(
            0.25, ge=0, lt=1, description="fraction of training without a penalty, before it grows (released code)"
        )
        aggregation: Aggregation = Field(
            "kernel_mean", description="of a layer's squares: mean over each kernel, then sum (released code)"
        )

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(strength=3.0)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        self._layers: dict[str, QuantLayer] = attach(model, self.context.exclude)
        # Kept outside the model and its slots: a later method of the stack may fill a slot that is empty now.
        self._defaults: dict[str, WeightQuantizer] = {
            name: default_quantizer(layer, self.context) for name, layer in self._layers.items()
        }

    def prepared(self, model: nn.Module) -> None:
        for name in self._layers:
            self._read(name)  # refuses an unsuitable quantizer before training begins

    def penalty(self, step: Step) -> Tensor | float:
        strength = self.strength_at(step.index, step.total)
        if strength == 0:
            return 0.0
        total: Tensor | float = 0.0
        for name in self._layers:
            quantizer, weight = self._read(name)
            total = total + distance(weight, quantizer, self.config.aggregation, self.context.fused)
        return strength * total

    def strength_at(self, index: int, total: int) -> float:
        """The factor of the penalty at a step: 0 until `start`, then half a cosine up to `strength`."""
        first = self.config.start * total
        if index <= first:
            return 0.0
        done = min(1.0, (index - first) / (total - first))
        return 0.5 * self.config.strength * (1 - math.cos(math.pi * done))

    def _read(self, name: str) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer of a layer and its input, the effective weight with its graph."""
        layer = self._layers[name]
        present: nn.Module = layer.weight_quantizer
        quantizer = self._defaults[name] if isinstance(present, Unfilled) else present
        if not isinstance(quantizer, WeightQuantizer) or type(quantizer).step is WeightQuantizer.step:
            raise SlotTakenError(
                f"methods: 'dampening' pulls weights to a grid of steps, which {type(quantizer).__name__} of layer "
                f"{name!r} does not have; stack it on a method whose levels are whole steps"
            )
        return quantizer, layer.effective_weight()


def distance(weight: Tensor, quantizer: WeightQuantizer, aggregation: Aggregation, fused: bool = False) -> Tensor:
    """agg( (sg[q(w)] - clip(w, s n, s p))^2 ) of one layer, shape (), with the gradient of the weight.

    fused: whether passes in C (harness/kernels/csrc/dampening.c) may compute it, where they can.
    """
    found = _by_passes_in_c(weight, quantizer, aggregation) if fused else None
    return _by_plain_operations(weight, quantizer, aggregation) if found is None else found


def _by_plain_operations(weight: Tensor, quantizer: WeightQuantizer, aggregation: Aggregation) -> Tensor:
    low, high = quantizer.levels
    step = quantizer.step(weight)
    clipped = weight.clamp(step * low, step * high)
    with torch.no_grad():
        target = quantizer(weight)
    squares = (target - clipped).square()
    if aggregation == "sum":
        return squares.sum()
    return squares.mean() if aggregation == "mean" else squares.flatten(1).mean(1).sum()


def _by_passes_in_c(weight: Tensor, quantizer: WeightQuantizer, aggregation: Aggregation) -> Tensor | None:
    """The same in closed form, the gradient `2 (w - q(w))` inside the range times the share of a square in agg.

    None where there is no such pass: for grids other than codes times a step, and for other devices and types.
    """
    if not on_plain_grid(quantizer) or not dispatch.serves(weight):
        return None
    with torch.no_grad():
        if isinstance(quantizer, MaxAbsQuantizer):
            step = quantizer.step_of(quantizer.peaks(weight))
        else:
            step = quantizer.step(weight)
    if step.dtype != torch.float32 or step.numel() != (len(weight) if quantizer.per_channel else 1):
        return None
    steps, (low, high) = step.flatten(), quantizer.levels
    share = {"sum": 1.0, "mean": 1 / weight.numel(), "kernel_mean": len(weight) / weight.numel()}[aggregation]
    passes = ClosedForm(
        (share * cpu.dampening_value(weight, steps, low, high)).float(),
        lambda w, factor: cpu.dampening_gradient(w, steps, low, high, 2 * share * factor),
        lambda w: _by_plain_operations(w, quantizer, aggregation),
    )
    return by_passes(passes, weight)
