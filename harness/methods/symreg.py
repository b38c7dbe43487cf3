"""Symmetry regularization (SymReg). S. Park, Jang, E. Park, ECCV 2022 (arXiv 2208.00338).

Float training with a regularizer that makes the weights of each layer symmetric about 0. Under a symmetric quantizer
symmetric weights keep their mean, 0, so rounding does not shift the layer's output.

Equations. The term added to the task loss, over quantized layers l, is strength * sum_l L_sym(w_l). Let w_(1) <= ...
<= w_(N) be the N sorted weights of a layer, (O, I) or (O, I, kh, kw), and a_j = w_(j) + w_(N+1-j):

    pairing one:   L_sym1 = 1 / floor(N/2) * sum_{j <= N/2} |a_j|
    pairing two:   L_sym2 = 1 / floor(N/4) * sum_{i <= N/4} |a_{2i-1} + a_{2i}|

Pairing one pairs each weight with that of the same rank from the other end; pairing two pairs two neighbours with two.
Both are 0 for weights symmetric about 0. Pairing two is looser: it is also 0 where neighbouring a_j cancel, and at most
2 L_sym1 for even floor(N/2). The gradient flows through the values; the sorting order is a constant. For odd N the
middle weight has no partner. If floor(N/2) is odd, pairing two leaves out the last a_j.

Where it acts: on the weight that gets quantized. That is the effective weight if a method of the stack fills
weight_transform (`satnl`, which the paper combines it with), else the latent one. A weight shared by layers counts
once, a frozen one not at all. Depthwise convolutions are left out.

Target bit: not needed, since no bit-width enters. If one is given, the loop monitors the accuracy at that bit-width.

Sources: no code was published, and the paper's text was not available. From secondary notes: the two pairings on
sorted weights, layer by layer, none for depthwise convolutions. From memory: the formulas of the pairings. Unknown: the
strength (0.1 is a guess; tune in 0.001 to 1) and which pairing is the paper's default.

Deviations known: the paper trains with ASAM, which is not provided: it needs a second forward and backward pass per
step, which the training loop does not have.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.kernels import cpu_symmetry, dispatch
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization.autograd import by_passes
from harness.quantization.layers import attach

Pairing = Literal["one", "two"]


def asymmetry(weight: Tensor, pairing: Pairing = "one", fused: bool = False) -> Tensor:
    """L_sym1 or L_sym2 of a tensor of any shape, >= 0, shape (); 0 for fewer weights than one pairing takes.

    fused: whether a pass in C (harness/kernels/csrc/symmetry.c) may compute it, where it can.
    """
    return total_asymmetry([weight], pairing, fused)


def total_asymmetry(weights: Sequence[Tensor], pairing: Pairing, fused: bool) -> Tensor:
    """The sum over weights, shape ()."""
    if fused and all(dispatch.serves(weight) for weight in weights):
        passes = _Passes(pairing)
        if passes.prepare(weights):
            return by_passes(passes, *weights)
    return _by_plain_operations(*weights, pairing=pairing)


def _by_plain_operations(*weights: Tensor, pairing: Pairing) -> Tensor:
    total = weights[0].new_zeros(())
    for weight in weights:
        ordered = weight.flatten().sort().values
        pairs = ordered.numel() // 2
        sums = ordered[:pairs] + ordered[ordered.numel() - pairs :].flip(0)
        if pairing == "two":
            sums = sums[: pairs - pairs % 2].view(-1, 2).sum(dim=1)
        total = total + sums.abs().sum() / max(1, sums.numel())
    return total


class _Passes:
    """The same in closed form: of each weight the gradient is its sum's sign."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing, self.plain = pairing, partial(_by_plain_operations, pairing=pairing)

    def prepare(self, weights: Sequence[Tensor]) -> bool:
        """Find values and signs; False where a weight is not finite."""
        fours, self.parts = self.pairing == "two", list[tuple[float, Tensor, int]]()
        for weight in weights:
            found = cpu_symmetry.symmetry(weight.detach(), fours)
            if found is None:
                return False
            self.parts.append((*found, max(1, weight.numel() // (4 if fours else 2))))
        return True

    def forward(self, *weights: Tensor) -> Tensor:
        return torch.tensor(sum(value / count for value, _, count in self.parts), dtype=weights[0].dtype)

    def backward(self, gradient: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        factor = float(gradient)
        return tuple(cpu_symmetry.signed_factor(signs, factor / count) for _, signs, count in self.parts)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution sees one input channel of several."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


class SymmetryRegularizer(Method):
    """Float training whose weights are drawn towards symmetry about 0; deployed by rounding to nearest."""

    kind, acts_on = "regularizer", "weights"

    needs_target_bit = False

    class Config(MethodConfig):
        name: Literal["symreg"] = "symreg"
        strength: float = Field(0.1, ge=0, le=1e6, description="lambda; the paper's is unknown: tune in 0.001 to 1")
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

        weights = [layer.effective_weight() for layer in self._layers]
        return self.config.strength * total_asymmetry(weights, self.config.pairing, self.context.fused)

    def metrics(self) -> dict[str, float]:
        """The mean of the layers' L_sym."""
        with torch.no_grad():
            values = [asymmetry(layer.effective_weight(), self.config.pairing) for layer in self._layers]
            return {"symreg/asymmetry": float(torch.stack(values).mean())}
