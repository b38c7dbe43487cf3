"""Learnable companding quantization (LCQ). Yamamoto, CVPR 2021 (arXiv 2103.07156).

Quantization-aware training with non-uniform levels that are learned together with the weights.

Equations. A weight tensor w, (O, I) or (O, I, kh, kw), is quantized as

    w^ = sigma Q(w / sigma),    Q(x) = sign(x) alpha c^-1( round(S c(v)) / S ),  v = min(|x| / alpha, 1).

S = 2^(b-1) - 1, so there are 2 S + 1 levels, 0 among them. sigma is the standard deviation of w, not detached and
without subtraction of the mean (limited weight normalization). The compressor c, and with it its inverse, the
expander, is piecewise linear on K intervals [d_k, d_k+1), d_k = k / K, of [0, 1], with K parameters theta:

    c(v) = gamma_k (v - d_k) + beta_k,   p = softmax(theta),  gamma_k = K p_k,  beta_k = sum_{j<k} p_j.

theta = 0 is the uniform quantizer to the last bit. Each layer trains one alpha, (), and one theta, (K,). Only the
rounding has a straight-through gradient; autograd does the rest. dQ/dx is therefore gamma of the interval of x divided
by gamma of the interval of its level (1 if they are the same interval), and 0 outside the range.

At 2 bits S = 1, and the curve has no effect: there is no theta, and the levels are {-alpha, 0, alpha} sigma.

With per-channel granularity (not in the paper) each channel has its own alpha and sigma; theta stays one per layer.

Activations, with a target such as w4a4: the same quantizer with an alpha and a theta of its own for each input, without
normalization; S = 2^b - 1 and no sign where calibration sees no negative value. alpha starts at the range of least
squared error in calibration (`activation_alpha_start` sets it; the paper's 8, from memory, is for inputs of batch
norm's scale).

Stacks: regularizers and methods that fill weight_transform combine with it ([lcq, dampening], [lcq, kure],
[satnl, lcq]); sigma is that of the effective weight. `freezing` needs integer codes times a step and is refused,
except at 2 bits, since the levels are not multiples of a step. The tracker watches the indices of the levels; threshold
distances are in bins, which are equally wide after c.

Deployment: at the target bit the trained quantizer. At other bit-widths `deploy.scale` decides: keep_range keeps alpha
and c with a new S; keep_step also scales alpha by S' / S, which keeps the mean step; recalibrate rounds with the
default quantizer.

Defaults: K = 16 and no theta at 2 bits are those of a published re-implementation; alpha = 3 and the normalization
are from memory of the paper; nothing was found on the learning rates and decay of alpha and theta. Uncertain: whether
sigma divides by n (here) or n - 1. Without the normalization alpha starts at alpha_start times sigma, since weights
much smaller than 1 would all be rounded to 0.

Deviations: every layer's weights at the target bit; the levels are not quantized again to 8 bits (theirs are, for a
lookup table in hardware); alpha is kept at 1e-5 or more; slopes are kept at exp(-10) times the steepest or more; sigma
is 1 where all weights are equal.

The re-implementation (DensoITLab/nuLSQ) has another gradient inside the range, on purpose: dQ/dx := 1 in place of the
quotient, and with it dQ/dalpha = Q/alpha - x/alpha. Its gradient of theta follows the chain rule and equals autograd's.
With theta = 0 both agree; the more theta differs from 0, the more the gradients of the weights differ.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from harness.core.config_base import IDENTITY_IF_CHANGED
from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization import CompandingQuantizer
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.shaped_activations import CompandingActivation
from harness.quantization.slots import SlotTakenError


class LearnedCompanding(Method):
    """Trains the weights, one range alpha and one companding curve theta per layer, at the target bit."""

    kind, acts_on = "QAT", "weights"
    activations = "learned companding"

    class Config(MethodConfig):
        name: Literal["lcq"] = "lcq"
        intervals: int = Field(16, ge=2, le=64, description="K, the pieces of the compressor (re-implementation: 16)")
        alpha_start: float = Field(3.0, gt=0, le=100, description="initial alpha, in sigmas (paper, from memory)")
        normalize: bool = Field(True, description="limited weight normalization: alpha is in sigmas throughout (paper)")
        alpha_learning_rate: float = Field(
            1.0, ge=0, le=100, description="learning rate of alpha, as a multiple of the run's"
        )
        theta_learning_rate: float = Field(
            1.0, ge=0, le=100, description="learning rate of theta, as a multiple of the run's"
        )
        weight_decay: float = Field(0.0, ge=0, le=1, description="of alpha and theta, in place of the run's")
        activation_alpha_start: float | None = Field(
            None,
            gt=0,
            le=1e6,
            description="initial alpha of activations (paper, from memory: 8); null: from calibration",
            json_schema_extra=IDENTITY_IF_CHANGED,
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        per_channel, config = self.context.quantizer.granularity == "channel", self.config

        def quantizer_of(layer: QuantLayer) -> CompandingQuantizer:
            made = CompandingQuantizer(
                self.context.bits(), per_channel, config.intervals, config.normalize, config.alpha_start
            )
            made.fused = self.context.fused
            return made.fit(layer.effective_weight())

        self._layers = attach(model, self.context.exclude, weight_quantizer=quantizer_of)
        # Kept here, since a later method may wrap the quantizer in the slot.
        found = [layer.weight_quantizer for layer in self._layers.values()]
        self._quantizers = [each for each in found if isinstance(each, CompandingQuantizer)]
        self._inputs = quantize_in_training(
            model,
            self.context,
            calibration,
            lambda bits, seen, site: CompandingActivation(
                bits, intervals=config.intervals, start=config.activation_alpha_start
            ).fit(seen),
        )

    def prepared(self, model: nn.Module) -> None:
        for (name, layer), own in zip(self._layers.items(), self._quantizers, strict=True):
            # Checked only here: a wrapper cannot see it, since the initial curve is a uniform grid.
            if layer.weight_quantizer is not own and own.log_slopes is not None:
                above = type(layer.weight_quantizer).__name__
                raise SlotTakenError(
                    f"methods: 'lcq' learns levels that are no multiples of a step, which {above} around them in layer "
                    f"{name!r} does not support; stack that on a method whose levels are whole steps"
                )

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        if name.endswith("_quantizer.learned_range"):
            return {"lr": self.config.alpha_learning_rate, "weight_decay": self.config.weight_decay}
        if name.endswith("_quantizer.log_slopes"):
            return {"lr": self.config.theta_learning_rate, "weight_decay": self.config.weight_decay}
        return {}

    def after_step(self, step: Step) -> None:
        for quantizer in (*self._quantizers, *self._inputs):
            assert isinstance(quantizer, CompandingQuantizer | CompandingActivation)
            quantizer.project()

    def metrics(self) -> dict[str, float]:
        """Means over layers: alpha, and gamma_0, the slope next to zero (1 while levels are uniform)."""
        with torch.no_grad():
            alphas = [quantizer.learned_range.mean() for quantizer in self._quantizers]
            slopes = [quantizer.compressor().slopes[0] for quantizer in self._quantizers]
            return {
                "lcq/alpha": float(torch.stack(alphas).mean()),
                "lcq/slope_at_zero": float(torch.stack(slopes).mean()),
            }
