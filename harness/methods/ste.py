"""Quantization-aware training with the straight-through estimator. Bengio, Léonard, Courville 2013 (arXiv 1308.3432).

The QAT baseline of Wenshøj, Pepin and Selvan, TMLR 2025 (arXiv 2502.00490, section 2): `y = f(x, q(w))` with
`q(w) = s round(w / s)`, `s = max|w| / Q`, and `d round(v) / dv := 1`.

Where it acts: weights only, every linear and convolution layer, first and last included.

Settings: `scale_gradient: graph`, the default, does not detach the scale s, as in the paper's released code.

Deviations: norm layers stay float. The released code takes every module that has a weight, so it also rounds the
weights of norm layers (20 of the 41 modules of its ResNet-18).
"""

from typing import Literal

from pydantic import Field
from torch import nn

from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization import make_quantizer
from harness.quantization.layers import attach


class StraightThrough(Method):
    """Trains through the default quantizer at the target bit."""

    kind, acts_on = "QAT", "weights"

    class Config(MethodConfig):
        name: Literal["ste"] = "ste"
        scale_gradient: Literal["graph", "detached"] = Field(
            "graph", description="whether s = max|w| / Q is in the graph or detached (the paper's code: graph)"
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        attach(
            model,
            self.context.exclude,
            weight_quantizer=lambda layer: make_quantizer(
                self.context.quantizer, self.context.bits(), self.config.scale_gradient, self.context.fused
            ).fit(layer.effective_weight()),
        )
