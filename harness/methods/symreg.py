"""Symmetry regularization (SymReg). S. Park, Jang, E. Park, ECCV 2022 (arXiv 2208.00338).

The network trains in float. To the task loss is added, over quantized layers l, strength * sum_l L_sym(w_l). With the
N weights of a layer, (O, I) or (O, I, kh, kw), sorted, w_(1) <= ... <= w_(N), and a_j = w_(j) + w_(N+1-j),

    pairing one:   L_sym1 = 1 / floor(N/2) * sum_{j <= N/2} |a_j|
    pairing two:   L_sym2 = 1 / floor(N/4) * sum_{i <= N/4} |a_{2i-1} + a_{2i}|

that is, each weight with the one at the same rank from the other end, or two neighbours with two. Where the weights
are symmetric about 0 both are 0; pairing two, which is looser, also where neighbouring a_j cancel (it is at most
2 L_sym1 for even floor(N/2)). Symmetric weights keep their mean, 0, under a symmetric quantizer, so rounding does not
shift a layer's output. The gradient goes through the values; which weights are paired is a constant. The middle weight
of an odd N has no partner, and with pairing two neither has the last pair of an odd floor(N/2).

Means something without a bit-width, so needs no target_bit; the loop monitors accuracy there when one is given. What is
regularized is the weight that gets quantized: the effective one where a method of the stack fills weight_transform
(`satnl`, which the paper combines it with), else the latent one.

No code was published, and the paper's text was not at hand. From secondary notes: the two pairings on sorted weights,
layer by layer, none for depthwise convolutions. From memory: the formulas of the pairings. Not known at all: strength
(0.001 to 1 is the range to tune in, 0.1 a guess) and which pairing is the default. Deviations known: the paper trains
with ASAM, which is not provided; a weight shared by layers counts once, a frozen one not at all.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization.layers import attach

Pairing = Literal["one", "two"]


def asymmetry(weight: Tensor, pairing: Pairing = "one") -> Tensor:
    """L_sym1 or L_sym2 of a tensor of any shape, >= 0, shape (); 0 for fewer weights than one pairing takes."""
    ordered = weight.flatten().sort().values
    pairs = ordered.numel() // 2
    sums = ordered[:pairs] + ordered[ordered.numel() - pairs :].flip(0)
    if pairing == "two":
        sums = sums[: pairs - pairs % 2].view(-1, 2).sum(dim=1)
    return sums.abs().sum() / max(1, sums.numel())


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution sees one input channel of several."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


class SymmetryRegularizer(Method):
    """Float training whose weights are drawn towards symmetry about 0; deployed by rounding to nearest."""

    kind, acts_on = "regularizer", "weights"

    needs_target_bit = False

    class Config(MethodConfig):
        name: Literal["symreg"] = "symreg"
        strength: float = Field(0.1, ge=0, le=1e6, description="lambda; the paper's is not known: tune in 0.001 to 1")
        pairing: Pairing = Field("one", description="weights paired one to one, L_sym1, or two to two, L_sym2 (paper)")

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        layers = attach(model, self.context.exclude).values()
        kept = [layer for layer in layers if layer.weight.requires_grad and not is_depthwise(layer)]
        self._layers = list({id(layer.weight): layer for layer in kept}.values())  # a shared weight counts once
        if not self._layers:
            raise UserError("symreg finds no trainable linear or convolution layer in this model that is not depthwise")

    def penalty(self, step: Step) -> Tensor | float:
        if self.config.strength == 0:
            return 0.0

        losses = [asymmetry(layer.effective_weight(), self.config.pairing) for layer in self._layers]
        return self.config.strength * torch.stack(losses).sum()

    def metrics(self) -> dict[str, float]:
        """The mean of the layers' L_sym."""
        with torch.no_grad():
            values = [asymmetry(layer.effective_weight(), self.config.pairing) for layer in self._layers]
            return {"symreg/asymmetry": float(torch.stack(values).mean())}
