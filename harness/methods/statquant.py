"""Fully quantized training (StatQuant). Chen, Gai, Yao, Mahoney, Gonzalez, NeurIPS 2020 (arXiv 2010.14298, "A
Statistical Framework for Low-bitwidth Training of Deep Neural Networks").

Training in which the backward pass computes with low-bit gradients, too. They are rounded stochastically, so that the
gradient of each weight is an unbiased estimate of that of quantization-aware training; the quantizer of gradients
decides its variance alone.

Equations. Each linear and convolution layer has a gradient of its output, dY (N, ...), of which it makes two copies:

    dX from Q_b(dY), b bits (`bits`)         dW and db from Q_8(dY) (`weight_gradient_bits`)

With dY flattened to G (N, D) and B = 2^b - 1 steps between levels, Q_b is (`quantizer`)

    tensor        PTQ, one range:        SR((G - z) B / R(G)) R(G) / B + z,   z a multiple of R(G) / B: 0 is a level
    sample        PSQ, a range per row:  SR((G_i - z_i) B / R(G_i)) R(G_i) / B + z_i,   R(G_i) = max G_i - min G_i
    householder   BHQ:                   S^-1 PSQ(S G), S block diagonal of Householder reflections times scales

and Q_8 is PTQ with `tensor`, else the same as PSQ with a range for each of the D columns. SR(x) is floor(x) or
floor(x) + 1, the latter with probability x - floor(x). Bounds of the variance, summed over G: N D R(G)^2 / (4 B^2) for
PTQ, D sum_i R(G_i)^2 / (4 B^2) for PSQ. BHQ spreads the few samples with large gradients over groups of others; S is in
harness/quantization/householder.py, the other quantizers in stochastic.py there.

Forward pass (`forward`): w8a8, the paper's: weights and inputs of layers at 8 bits, rounded to nearest, straight
through; target: the same at the run's target, which may be w4 or w4a4; float: nothing, so that it can have another
method's, [lsq, statquant]. The quantizers are those of `ste` with its scale detached.

Settings: `bits` 8 (released code; 4 to 8 in the paper), 2 to 8; `weight_gradient_bits` 8 (paper). null leaves a copy as
it is; with both null and a float forward this is float training. `quantizer: householder` is the paper's best.

Draws come from the method's own seed, the number of the step, layer and slot, on the run's device. So a resumed run
draws the same, and no checkpoint holds a generator.

Sources: the released code (cjf00000/StatQuant: quantize.py, preconditioner.py, quantizers.cpp) for all quantizers,
ranges, two copies, defaults. The paper itself could not be read, but for its abstract; its bounds are from memory.

Deviations: weights have the run's default quantizer (symmetric; theirs: from min w to max w, with a zero level), inputs
a range that follows those of the batches and holds 0 (`activation_momentum: 1` is each batch's own, as theirs in
training). With `tensor`, theirs divides by 0 where no gradient is negative or the least is less than a step below 0:
here the zero level is the first or the second one. Theirs widens every range by 1e-8, and so does this, except in rows
and columns of equal numbers, which stay exact. Theirs finds no groups for batches of one or two: PSQ here. An integer
is never rounded up by the limits of fp32 (`stochastic_round`). Under autocast the rounded gradient is cast to bf16, as
dY was. Batch norm is float in both passes, as in theirs; the products of attention, which the paper lacks, have float
gradients; weights of norms follow `quantizer.norms`.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from torch import nn

from harness.core.errors import UserError
from harness.core.seeding import sub_seed
from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step
from harness.quantization import make_quantizer
from harness.quantization.householder import HouseholderQuantizer
from harness.quantization.layers import GRADIENT_SLOTS, attach
from harness.quantization.learned_activations import MovingRangeQuantizer
from harness.quantization.stochastic import ColumnQuantizer, GradientQuantizer, SampleQuantizer, TensorQuantizer

#: By the setting: the quantizer of the copy for dX, and of that for dW and db.
QUANTIZERS: dict[str, tuple[type[GradientQuantizer], type[GradientQuantizer]]] = {
    "tensor": (TensorQuantizer, TensorQuantizer),
    "sample": (SampleQuantizer, ColumnQuantizer),
    "householder": (HouseholderQuantizer, ColumnQuantizer),
}


class FullyQuantizedTraining(Method):
    """Trains with gradients of few bits, and weights and activations of 8; deployed by rounding to nearest."""

    kind, acts_on = "low-bit training", "gradients"
    activations = "moving range"
    refuses_norms = ""
    needs_target_bit = False

    class Config(MethodConfig):
        name: Literal["statquant"] = "statquant"
        bits: int | None = Field(8, ge=2, le=8, description="of the gradients from which dX is computed; null: float")
        quantizer: Literal["householder", "sample", "tensor"] = Field(
            "householder", description="of gradients: block Householder (BHQ), per sample (PSQ), per tensor (PTQ)"
        )
        weight_gradient_bits: int | None = Field(
            8, ge=2, le=8, description="of the gradients from which dW and db are computed (paper: 8); null: float"
        )
        forward: Literal["w8a8", "target", "float"] = Field(
            "w8a8", description="how weights and activations are rounded in training (paper: w8a8)"
        )
        activation_momentum: float = Field(
            0.1, gt=0, le=1, description="part of a batch's extremes in the ranges of activations (released code: 1)"
        )

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(bits=3, forward="target")

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        slots, context = self._gradient_slots(), self._forward_context()
        if context is not None:
            slots["weight_quantizer"] = lambda layer: make_quantizer(
                context.quantizer, context.bits(), "detached", context.fused, layer
            ).fit(layer.effective_weight())
        if slots:
            attach(model, self.context.exclude, **slots)
        if context is not None:
            momentum = self.config.activation_momentum
            quantize_in_training(
                model, context, calibration, lambda bits, seen, site: MovingRangeQuantizer(bits, momentum).fit(seen)
            )

    def prepared(self, model: nn.Module) -> None:
        found = dict(model.named_modules())
        self._quantizers = {name: each for name, each in found.items() if isinstance(each, GradientQuantizer)}

    def on_step_start(self, step: Step) -> None:
        for name, quantizer in self._quantizers.items():
            quantizer.start(sub_seed(self.context.seed, "statquant", step.index, name))

    def _gradient_slots(self) -> dict[str, Any]:
        """What builds the modules of a layer's slots for gradients, for `attach`."""
        kinds = QUANTIZERS[self.config.quantizer]
        bits = self.config.bits, self.config.weight_gradient_bits
        return {
            slot: lambda layer, kind=kind, each=each: kind(each)
            for slot, kind, each in zip(GRADIENT_SLOTS, kinds, bits, strict=True)
            if each is not None
        }

    def _forward_context(self) -> Context | None:
        """The run, with the point of the forward pass as its target; None where that is float."""
        if self.config.forward == "float":
            return None
        if self.config.forward == "w8a8":
            return replace(self.context, target_bit="w8a8")
        if self.context.point is None:
            raise UserError("statquant.forward: target: there is no target_bit; set it, or forward: w8a8 or float")
        return self.context
