"""Statistical weight quantization (StatsQ). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free
Quantization for Low-bit Vision Transformers").

A learned step oscillates itself and takes weights over thresholds; here the range of each output channel o follows
from its weights. With b bits, n = 2^(b-1), and a convolution's weight (O, I, kh, kw) taken as (O, I kh kw),

    alpha_o = 2 mean_i |w_oi|,   c = clip(w / alpha, -1, 1 - 1e-6),   q(w) = alpha (round(c n - 1/2) + 1/2) / n.

The grid is mid-rise: 2^b levels in the middle of as many bins, at 2 bits +-alpha/4 and +-3 alpha/4, none of them 0;
thresholds are at alpha k / n, |k| < n. The gradient is dq/dw = 1 everywhere, for clipped weights too, and alpha is
detached. So nothing is learned but the weights, and the quantizer has no state.

It fills the slot weight_quantizer, on any linear or convolution layer, and sees the effective weight: [satnl, statsq],
[statsq, cga]. What works with integer codes times a step (dampening, freezing) has none here and refuses the stack.
Codes that trackers watch are the bins' numbers from -n to n - 1. The grid at the target bit is deployed there. At
other bits `deploy.scale` decides: keep_range has the same alpha, keep_step bins of the same width alpha / n,
recalibrate rounds the latent weights with the default quantizer.

granularity: the paper's is `channel`; `run` follows `quantizer.granularity`, so that methods with one step per tensor
can be compared with it.

Source: formulas and gradient as in the authors' code (nbasyl/OFQ), which has linear layers only: how convolutions are
treated is a reconstruction. Deviations: weights only (the paper also learns steps of activations, with offsets on
both sides, distils from a float teacher, and re-parametrizes queries and keys); every layer at the target bit.
floor(w n / alpha) replaces the rounding: a weight on a threshold is always in the bin above it, and a negative one
next to 0 stays in a negative bin (there, c n - 1/2 loses it in fp32, and halves go to even). Channels of zeros, where
their code divides 0 by 0, give zeros, the one exception to "no zero".
"""

from typing import Literal

from pydantic import Field
from torch import nn

from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization import StatisticalQuantizer
from harness.quantization.layers import attach


class StatisticalQuantization(Method):
    """Trains through a grid at the target bit whose range is twice the mean size of the weights."""

    kind, acts_on = "QAT", "weights"

    class Config(MethodConfig):
        name: Literal["statsq"] = "statsq"
        granularity: Literal["channel", "tensor", "run"] = Field(
            "channel", description="what has an alpha of its own (paper: channel); run: as quantizer.granularity"
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
