"""The oscillation regularizer. Wenshøj, Pepin, Selvan, TMLR 2025 (arXiv 2502.00490, section 4).

Float training with a regularizer that pushes each weight away from its nearest grid point, towards the decision
threshold, as the gradient of quantization-aware training does.

Equations. The term added to the task loss, over quantized layers l of n_l weights, is

    R = strength * sum_l mean_i( q_i^2 - w_i^2 ),   q = s k,  k = round(w / s),  s = max|w| / Q.

Its straight-through gradient, with the scale s not detached, has the closed form (`oscillation_penalty`)

    dR/dw_i = (2 strength / n) [ q_i - w_i + [i attains max|w|] sign(w_i) / (Q ties) * sum_j q_j (k_j - w_j / s) ].

The first term is the push away from the grid point. The second moves the step through the largest weights; without it
the effect is lost at 2 bits. The gradient is added without autograd; tests/reference holds the plain loss.

With `direction: random_sign` each entry of this gradient gets a sign of its own, + or - with probability 1/2, drawn
again at each step: a push of the same size that is 0 on average. It is a control, not the paper's: what it changes in a
network comes with the push's size, and what only `graph` changes is due to its direction. `direction: scale_only`
leaves the first term out and keeps the second, the pull on the largest weights: what it changes needs no push, and no
weight that oscillates. With either the value that is logged as the penalty is still R, and plain operations run.

Settings: strength is the paper's lambda, >= 0, tuned per task (about 1 to 100 for Adam at the sizes of this harness).
Signs come from the method's own seed and the number of the step, so a resumed run draws the same.

Deviations: norm layers stay float and without penalty unless `quantizer.norms: quantized`. The paper's released code
takes every module that has a weight, so it also regularizes the weights of norm layers, and rounds them after training.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.core.config_base import IDENTITY_IF_CHANGED
from harness.core.seeding import sub_seed
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.oscillation.regularizer import OscillationRegularizer
from harness.quantization.layers import QuantLayer
from harness.quantization.slots import SlotTakenError, Unfilled


class Oscillation(Method):
    """Float training with the regularizer at the target bit; deployed by rounding to nearest."""

    kind, acts_on = "regularizer", "weights"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["oscillation"] = "oscillation"
        strength: float = Field(1.0, ge=0, le=1e6, description="the paper's lambda; tune it")
        scale_gradient: Literal["graph", "detached"] = Field(
            "graph", description="whether s = max|w| / Q is in the graph or detached (the paper's code: graph)"
        )
        direction: Literal["graph", "random_sign", "scale_only"] = Field(
            "graph",
            description="of the push: the regularizer's gradient, that with a random sign for each weight and step, or "
            "no push, which leaves the pull on the largest weights",
            json_schema_extra=IDENTITY_IF_CHANGED,
        )

        @model_validator(mode="after")
        def _something_is_left(self) -> Self:
            if self.direction == "scale_only" and self.scale_gradient == "detached":
                raise ValueError(
                    "direction: scale_only with scale_gradient: detached leaves nothing of the regularizer"
                )
            return self

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

    def prepared(self, model: nn.Module) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, QuantLayer) and not isinstance(layer.weight_transform, Unfilled):
                raise SlotTakenError(
                    f"layer {name}: oscillation adds its gradient to the trained weights themselves, but another "
                    "method puts a weight_transform between them and what is rounded"
                )

    def after_backward(self, step: Step) -> Tensor | float:
        if self.config.strength == 0:
            return 0.0
        how = self.config.direction
        return self._regularizer.add_gradient(self._signs(step) if how == "random_sign" else None, how != "scale_only")

    def _signs(self, step: Step) -> torch.Generator:
        device = next(step.model.parameters()).device
        return torch.Generator(device).manual_seed(sub_seed(self.context.seed, "oscillation", step.index))
