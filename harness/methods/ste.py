"""Quantization-aware training with the straight-through estimator. Bengio, Léonard, Courville 2013 (arXiv 1308.3432).

The QAT baseline of Wenshøj, Pepin and Selvan, TMLR 2025 (arXiv 2502.00490, section 2): `y = f(x, q(w))` with
`q(w) = s round(w / s)`, `s = max|w| / Q`, and `d round(v) / dv := 1`.

Where it acts: every linear and convolution layer, first and last included; weights, and with a target such as w4a4
activations, where the study has none: static ranges per tensor that follow an exponential moving average of each
batch's extremes, and the same straight-through gradient inside them (`MovingRangeQuantizer`).

Settings: `scale_gradient: graph`, the default, does not detach the scale s, as in the paper's released code.

Deviations: norm layers stay float unless `quantizer.norms: quantized`. The released code takes every module that has a
weight, so it also rounds the weights of norm layers (20 of the 41 modules of its ResNet-18).
"""

from typing import Literal

from pydantic import Field
from torch import nn

from harness.core.config_base import IDENTITY_IF_CHANGED
from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization import make_quantizer
from harness.quantization.layers import attach
from harness.quantization.learned_activations import MovingRangeQuantizer

#: Names that a message takes for this one.
ALSO_CALLED = ("qat",)


class StraightThrough(Method):
    """Trains through the default quantizer at the target bit."""

    kind, acts_on = "QAT", "weights"
    activations = "moving range"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["ste"] = "ste"
        scale_gradient: Literal["graph", "detached"] = Field(
            "graph", description="whether s = max|w| / Q is in the graph or detached (the paper's code: graph)"
        )
        activation_momentum: float = Field(
            0.1,
            gt=0,
            le=1,
            description="part of a batch's extremes in the ranges of activations",
            json_schema_extra=IDENTITY_IF_CHANGED,
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        attach(
            model,
            self.context.exclude,
            weight_quantizer=lambda layer: make_quantizer(
                self.context.quantizer, self.context.bits(), self.config.scale_gradient, self.context.fused, layer
            ).fit(layer.effective_weight()),
        )
        momentum = self.config.activation_momentum
        quantize_in_training(
            model, self.context, calibration, lambda bits, seen, site: MovingRangeQuantizer(bits, momentum).fit(seen)
        )
