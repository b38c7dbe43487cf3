"""Pseudo-quantization noise (PQN). Défossez, Adi, Synnaeve, TMLR 2022 (arXiv 2104.09987, "DiffQ").

Training with random noise on the weights, of the size that rounding errors have at the target bit. Nothing is rounded
in training: no straight-through gradient, and no weight that oscillates between two levels. The noise is a control for
methods that train through a quantizer: what they gain and noise does not is due to rounding itself.

Equations. For a weight w (O, I) or (O, I, kh, kw) of each quantized layer, with the step s of the run's default
quantizer at the target bit, () or (O, 1, ...), a training step computes the layer with

    size step:   w + strength s e                e ~ U(-1/2, 1/2) (uniform) or N(0, 1) / 2 (gaussian)
    size push:   w + strength |q(w) - w| e'      e' ~ U(-sqrt 3, sqrt 3) or N(0, 1), so of variance 1

independently for each weight and step. The gradient flows to w, and with `size: step` through s = max|w| / Q too.
Every forward pass of one training step sees the same noise. Evaluation has none; deployment rounds to nearest.

`size: push` matches the noise to `oscillation`, whose push on w_i is in proportion to q_i - w_i. In the model that its
paper starts from, a loss of curvature h, training through a quantizer adds h (q - w) to the gradient of the weight
(`oscillation` with 2 strength / n for h), and noise n adds h n. With strength 1, n has the mean square of q - w, weight
by weight: the same size in a random direction, and none for a weight on its grid point. The curvature is the loss's
own, so the regularizer's strength has no part in it.

Settings: strength 1 is noise of one step (the paper's), 0 is float training. Draws come from the method's own seed and
the number of the step, so a resumed run draws the same.

Sources: the released code (facebookresearch/diffq, diffq/diffq.py) for the formula of `size: step` with both kinds of
noise (its default is gaussian, with this standard deviation of half a step), and for the gradient through the range.
The paper itself could not be read; uniform noise of one step as its first definition is from memory. `size: push` is
this harness' own.

Deviations: the bit-width is fixed, the target's. DiffQ learns bits for groups of 8 weights with a penalty on the
model's size. The range is that of the default quantizer, symmetric (theirs: max(w) - min(w) over 2^b - 1 steps).
Layers that share a weight draw their own noise.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.seeding import sub_seed
from harness.methods.base import Calibration, Method, MethodConfig, Step, default_quantizer
from harness.quantization import WeightQuantizer
from harness.quantization.layers import QuantLayer, attach

Kind = Literal["uniform", "gaussian"]
Size = Literal["step", "push"]


class PseudoNoise(nn.Module):
    """Fills weight_quantizer: adds the noise of the present step in training, nothing in evaluation.

    noise: in units of its size, shape of the weight; zeros until the first `draw`. No part of the state dict.
    """

    noise: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, strength: float, kind: Kind, size: Size) -> None:
        super().__init__()
        self.quantizer, self.strength, self.kind, self.size = quantizer, strength, kind, size
        self.register_buffer("noise", torch.zeros_like(weight), persistent=False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New noise; the generator is on the weight's device."""
        if self.kind == "gaussian":
            self.noise.normal_(0.0, 0.5 if self.size == "step" else 1.0, generator=generator)
        else:
            reach = 0.5 if self.size == "step" else math.sqrt(3)
            self.noise.uniform_(-reach, reach, generator=generator)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight
        if self.size == "step":
            return weight + self.strength * self.quantizer.step(weight) * self.noise
        with torch.no_grad():
            distance = (self.quantizer(weight) - weight).abs_()
        return weight + self.strength * distance * self.noise


class PseudoQuantizationNoise(Method):
    """Training with noise on the weights in place of rounding; deployed by rounding to nearest."""

    kind, acts_on = "noise", "weights"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["pqn"] = "pqn"
        strength: float = Field(1.0, ge=0, le=100, description="width of the noise, in its size (paper: 1)")
        noise: Kind = Field("uniform", description="uniform, or gaussian of standard deviation 1/2 (released code)")
        size: Size = Field(
            "step", description="step: of the target's grid (paper); push: that of the oscillation regularizer's push"
        )

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        config = self.config
        self._noises: list[PseudoNoise] = []
        if config.strength == 0:
            return

        def noise(layer: QuantLayer) -> PseudoNoise:
            quantizer = default_quantizer(layer, self.context)
            self._noises.append(PseudoNoise(quantizer, layer.weight, config.strength, config.noise, config.size))
            return self._noises[-1]

        attach(model, self.context.exclude, weight_quantizer=noise)

    def on_step_start(self, step: Step) -> None:
        if self._noises:
            generator = torch.Generator(self._noises[0].noise.device)
            generator.manual_seed(sub_seed(self.context.seed, "pqn", step.index))
            for each in self._noises:
                each.draw(generator)
