"""Learned step size quantization. Esser, McKinstry, Bablani, Appuswamy, Modha, ICLR 2020 (arXiv 1902.08153).

Quantization-aware training with one learned step s per layer (or output channel).

Equations 1 to 3: `q(w) = s clip(round(w/s), -Q_N, Q_P)`, `dq/ds = -w/s + round(w/s)` inside the range and the
clipped code outside, `dq/dw = 1` inside and 0 outside. The gradient of s is multiplied by `1/sqrt(N Q_P)`, and
`s0 = 2 mean|w| / sqrt(Q_P)` (section 2.2).

Activations, with a target such as w4a4: one learned step for each input, unsigned where calibration sees no negative
value, `s0 = 2 mean|x| / sqrt(Q_P)` from calibration, its gradient times `1/sqrt(N Q_P)` with N features of one sample.

Deviations: every layer's weights at the target bit, as in the study that this harness reproduces (the paper keeps the
first and last layer at 8 bits; their inputs follow `activations.first_last`); the symmetric grid unless `levels: full`;
the step is kept at 1e-5 or more and has no weight decay; a weight less than `BOUND_SLACK` (1e-4, in steps) beyond an
end of the range counts as inside it (`harness/quantization/autograd.py`).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization import LSQQuantizer
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.norms import per_channel


class LearnedStepSize(Method):
    """Trains the weights and one step per layer (or channel) at the target bit."""

    kind, acts_on = "QAT", "weights"
    activations = "learned step"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["lsq"] = "lsq"
        levels: Literal["symmetric", "full"] = Field("symmetric", description="codes: +-Q, or -Q-1 to Q (paper)")
        step_learning_rate: float = Field(
            1.0, ge=0, le=100, description="learning rate of the quantization steps, as a multiple of the run's"
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        def learned(layer: QuantLayer) -> LSQQuantizer:
            channel = per_channel(self.context.quantizer, layer)
            quantizer = LSQQuantizer(self.context.bits(), channel, self.config.levels)
            quantizer.fused = self.context.fused
            return quantizer.fit(layer.effective_weight())

        layers: dict[str, QuantLayer] = attach(model, self.context.exclude, weight_quantizer=learned)
        inputs = quantize_in_training(
            model, self.context, calibration, lambda bits, seen, site: LearnedStepQuantizer(bits).fit(seen)
        )
        self._quantizers = [*(layer.weight_quantizer for layer in layers.values()), *inputs]

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        if name.endswith("_quantizer.learned_step"):
            return {"lr": self.config.step_learning_rate, "weight_decay": 0.0}
        return {}

    def after_step(self, step: Step) -> None:
        for quantizer in self._quantizers:
            assert isinstance(quantizer, LSQQuantizer | LearnedStepQuantizer)
            quantizer.project()
