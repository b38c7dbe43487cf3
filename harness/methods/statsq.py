"""Statistical weight quantization (StatsQ). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free
Quantization for Low-bit Vision Transformers").

Quantization-aware training in which the range of each output channel is computed from its weights. A learned step
oscillates itself and moves thresholds across weights; here no step is learned.

Equations. With b bits, n = 2^(b-1), output channel o, and a convolution weight (O, I, kh, kw) taken as (O, I kh kw):

    alpha_o = 2 mean_i |w_oi|,   c = clip(w / alpha, -1, 1 - 1e-6),   q(w) = alpha (round(c n - 1/2) + 1/2) / n

The grid is mid-rise: 2^b levels in the middle of as many bins, at 2 bits +-alpha/4 and +-3 alpha/4, none of them 0.
Thresholds are at alpha k / n, |k| < n. The gradient is dq/dw = 1 everywhere, also for clipped weights, and alpha is
detached. The quantizer has no parameters and no state.

Slots: it fills weight_quantizer of linear and convolution layers, and sees the effective weight: [satnl, statsq],
[statsq, cga]. Methods that need integer codes times a step (dampening, freezing) refuse the stack. Codes in the
tracker are the numbers of the bins, -n to n - 1.

Deployment: at the target bit this grid. At other bit-widths `deploy.scale` decides: keep_range keeps alpha, keep_step
keeps the bin width alpha / n, recalibrate rounds the latent weights with the default quantizer.

Settings: `granularity` is `channel` in the paper; `run` follows `quantizer.granularity`, for comparison with methods
that have one step per tensor.

Activations, with a target such as w4a4: `lsq(x + b1) + b2` for each input of a layer, with one learned step and learned
biases b1, b2 per channel that start at 0; for the operands of attention one learned step each, unsigned where
calibration sees no negative value (softmax). At points with other bits for activations, `deploy.scale` decides on the
step; where activations are float, b1 + b2 stays.

Source: formulas and gradient as in the authors' code (nbasyl/OFQ). It has linear layers only, so the treatment of
convolutions is a reconstruction.

Deviations: every layer at the target bit; one step per input (released code: one for each token or channel), and no
biases around queries, keys and values; no distillation from a float teacher (queries and keys: see `qkr`). floor(w n /
alpha) replaces the rounding: a weight on a threshold is always in the bin above it, and a negative one next to 0 stays
in a negative bin (in the rounding, c n - 1/2 loses it in fp32, and halves go to even). A channel of zeros, where the
released code divides 0 by 0, stays zero: the one exception to "no zero".
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization import StatisticalQuantizer
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import attach
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.observed import Observed
from harness.quantization.observing import Site
from harness.quantization.shaped_activations import BiasedStepQuantizer


class StatisticalQuantization(Method):
    """Trains through a grid at the target bit whose range is twice the mean size of the weights."""

    kind, acts_on = "QAT", "weights"
    activations = "learned step and biases"

    class Config(MethodConfig):
        name: Literal["statsq"] = "statsq"
        granularity: Literal["channel", "tensor", "run"] = Field(
            "channel", description="one alpha per channel (paper) or tensor; run: as quantizer.granularity"
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        wanted = self.config.granularity
        per_channel = (self.context.quantizer.granularity if wanted == "run" else wanted) == "channel"
        attach(
            model,
            self.context.exclude,
            weight_quantizer=lambda layer: StatisticalQuantizer(self.context.bits(), per_channel),
        )
        self._inputs = quantize_in_training(model, self.context, calibration, _of_input)

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        return {"weight_decay": 0.0} if name.endswith(_LEARNED) else {}

    def after_step(self, step: Step) -> None:
        for quantizer in self._inputs:
            assert isinstance(quantizer, LearnedStepQuantizer)
            quantizer.project()


#: The ends of the names of parameters of activation quantizers.
_LEARNED = tuple(
    f"{slot}.{name}" for slot in ("input_quantizer", "other_quantizer") for name in ("learned_step", "before", "after")
)


def _of_input(bits: int, seen: Observed, site: Site) -> ActivationQuantizer:
    if isinstance(site.owner, nn.Conv2d):
        return BiasedStepQuantizer(bits, (site.owner.in_channels, 1, 1)).fit(seen)
    if isinstance(site.owner, nn.Linear):
        return BiasedStepQuantizer(bits, (site.owner.in_features,)).fit(seen)
    return LearnedStepQuantizer(bits).fit(seen)
