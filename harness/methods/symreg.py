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

Pairing one in layers of 2^13 weights and more needs no sorting: sizes |w| in one bucket count as equal. The fp32 bits
of |w| without the last 12, so to 11 binary places, name a bucket. There are 2^15: the last one is that of max|w|; the
first one has all sizes below about 2^-16 max|w|, which count as 0. In any other bucket, of p positive and n negative
weights, let B be how many more positive than negative weights are in larger buckets, and c(x, m) = x clipped to [0, m].
A weight leads its pair unless the one of its rank from the other end is in a larger bucket, so that the mean of
sign(a_j) over all orders of the bucket's members, the gradient's sign of each, is

    (c(p - n + B, p) - c(-B, p)) / p for positive weights,   (c(B, n) - c(n - p - B, n)) / n for negative ones.

In the first bucket, of m weights, it is B / m, clipped to [-1, 1]. For odd N the middle weight's share of its bucket's
mean is 0. The value takes each size to be the middle of its bucket: it is off by at most 2^-11 of the mean |w|, and by
2^-16 max|w| for each weight of the first bucket, over floor(N/2).

Where it acts: on the weight that gets quantized. That is the effective weight if a method of the stack fills
weight_transform (`satnl`, which the paper combines it with), else the latent one. A weight shared by layers counts
once, a frozen one not at all. Depthwise convolutions are left out.

Target bit: not needed, since no bit-width enters. If one is given, the loop monitors the accuracy at that bit-width.

Sources: no code was published, and the paper's text was not available. From secondary notes: the two pairings on
sorted weights, layer by layer, none for depthwise convolutions. From memory: the formulas of the pairings. Unknown: the
strength (0.1 is a guess; tune in 0.001 to 1) and which pairing is the paper's default.

Deviations known: in large layers, sizes that differ by less than 2^-11 of themselves count as equal, as above: eight
times finer than bf16, and less than a step of training changes. The paper trains with ASAM, which is not provided: it
needs a second forward and backward pass per step, which the training loop does not have.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.kernels import cpu_symmetry, dispatch
from harness.kernels.cpu_symmetry import BUCKETS, SHIFT
from harness.methods.base import Calibration, Method, MethodConfig, Step
from harness.quantization.autograd import by_passes, straight_through
from harness.quantization.layers import attach
from harness.quantization.slots import Unfilled

Pairing = Literal["one", "two"]
#: From so many weights on, pairing one counts sizes in buckets instead of sorting them.
LARGE = 2**13


def asymmetry(weight: Tensor, pairing: Pairing = "one", fused: bool = False) -> Tensor:
    """L_sym1 or L_sym2 of a tensor of any shape, >= 0, shape (); 0 for fewer weights than one pairing takes.

    fused: whether passes over the weights' memory (harness/kernels/cpu_symmetry.py) may compute it, where they can.
    """
    return total_asymmetry([weight], pairing, fused)


def total_asymmetry(weights: Sequence[Tensor], pairing: Pairing, fused: bool) -> Tensor:
    """The sum over weights, shape ()."""
    if fused and _served(weights):
        passes = _Passes(pairing)
        if passes.prepare(weights):
            return by_passes(passes, *weights)
    return _by_plain_operations(*weights, pairing=pairing)


@torch.no_grad()
def add_gradient(weights: Sequence[Tensor], pairing: Pairing, strength: float) -> Tensor:
    """Add the gradient of strength times `total_asymmetry` to each weight's `.grad`; returns that value, shape ().

    Only for weights that passes serve. Autograd would make a tensor, and then add it in a pass of its own.
    """
    passes = _Passes(pairing)
    if passes.prepare(weights):
        passes.add_gradient(torch.tensor(strength), *weights)  # in fp32, as autograd has it
        return strength * passes.forward(*weights)
    with torch.enable_grad():
        value = strength * _by_plain_operations(*weights, pairing=pairing)
        value.backward(inputs=list(weights))
    return value.detach()


def _served(weights: Sequence[Tensor]) -> bool:
    return all(dispatch.serves(weight) and weight.numel() < 2**31 for weight in weights)


def _by_plain_operations(*weights: Tensor, pairing: Pairing) -> Tensor:
    total = weights[0].new_zeros(())
    for weight in weights:
        by_buckets = pairing == "one" and weight.numel() >= LARGE
        total = total + (_by_counting(weight) if by_buckets else _by_sorting(weight, pairing))
    return total


def _by_sorting(weight: Tensor, pairing: Pairing) -> Tensor:
    ordered = weight.flatten().sort().values
    pairs = ordered.numel() // 2
    sums = ordered[:pairs] + ordered[ordered.numel() - pairs :].flip(0)
    if pairing == "two":
        sums = sums[: pairs - pairs % 2].view(-1, 2).sum(dim=1)
    return sums.abs().sum() / max(1, sums.numel())


def _by_counting(weight: Tensor) -> Tensor:
    """L_sym1 of a large layer, sizes in one bucket taken to be equal."""
    bits = weight.detach().float().flatten().view(torch.int32)
    sizes = (bits & 0x7FFFFFFF) >> SHIFT
    base = (sizes.max() - (BUCKETS - 1)).clamp(min=0)
    places = 2 * (sizes - base).clamp(min=0).long() + (bits < 0)
    counts = bits.new_zeros(2 * BUCKETS).scatter_add(0, places, torch.ones_like(bits))
    middles = (torch.arange(BUCKETS, device=bits.device, dtype=torch.int32) + base) << SHIFT | 1 << (SHIFT - 1)
    value, signs = _mean_signs(counts.view(BUCKETS, 2), middles.view(torch.float32), len(bits))
    surrogate = (signs.flatten()[places].view(weight.shape).to(weight.dtype) * weight).sum()
    return straight_through(value.to(weight.dtype), surrogate) / (len(bits) // 2)


def _mean_signs(counts: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sum of |a_j|, shape (), fp64, and the mean signs of buckets, fp32, in the shape of `counts`, (BUCKETS, 2)."""
    larger = counts.flip(0).cumsum(0).flip(0) - counts
    (p, n), (above, below) = counts.unbind(1), larger.unbind(1)
    lead, none = above - below, torch.zeros_like(p)
    positive = (p - n + lead).clamp(none, p) - (-lead).clamp(none, p)
    negative = lead.clamp(none, n) - (n - p - lead).clamp(none, n)
    if count % 2:
        middle = count // 2 + 1
        alone = ((larger < middle) & (larger + counts >= middle)).int()
        positive, negative = positive - alone[:, 0], negative + alone[:, 1]
    signs = torch.stack([positive, negative], dim=1) / counts.clamp(min=1)
    zeros = p[0] + n[0]
    signs[0] = lead[0].clamp(-zeros, zeros) / zeros.clamp(min=1)
    return (sizes.double() * (positive - negative))[1:].sum(), signs


class _Passes:
    """The same in closed form: of each weight the gradient is its sum's (mean) sign."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing, self.plain = pairing, partial(_by_plain_operations, pairing=pairing)

    def prepare(self, weights: Sequence[Tensor]) -> bool:
        """Find values and signs; False where a weight is not finite."""
        self.parts = list[tuple[cpu_symmetry.Found, int]]()
        for weight in weights:
            found, count = self._find(weight.detach()), weight.numel()
            if found is None:
                return False
            self.parts.append((found, max(1, count // (4 if self.pairing == "two" else 2))))
        return True

    def _find(self, weight: Tensor) -> cpu_symmetry.Found | None:
        if self.pairing == "two":
            return cpu_symmetry.of_fours(weight)
        return cpu_symmetry.by_counting(weight) if weight.numel() >= LARGE else cpu_symmetry.by_sorting(weight)

    def forward(self, *weights: Tensor) -> Tensor:
        return torch.tensor(sum(value / pairs for (value, _), pairs in self.parts), dtype=weights[0].dtype)

    def backward(self, gradient: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        factor = float(gradient)
        each = zip(self.parts, weights, strict=True)
        return tuple(gradient_of(weight, factor / pairs) for ((_, gradient_of), pairs), weight in each)

    def add_gradient(self, factor: Tensor, *weights: Tensor) -> None:
        """Add factor times the gradient to each weight's `.grad`, in place where it lies as the weight does."""
        for ((_, gradient_of), pairs), weight in zip(self.parts, weights, strict=True):
            share = float(factor) / pairs
            if weight.grad is None:  # the task loss does not depend on it
                weight.grad = gradient_of(weight, share)
            elif dispatch.serves(weight, weight.grad):
                gradient_of(weight, share, weight.grad)
            else:
                weight.grad += gradient_of(weight, share)


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
        self._added_later = False
        self._layers = list({id(layer.weight): layer for layer in kept}.values())  # a shared weight counts once
        if not self._layers:
            raise UserError("symreg finds no trainable linear or convolution layer in this model that is not depthwise")

    def penalty(self, step: Step) -> Tensor | float:
        self._added_later = self.config.strength > 0 and self._passes_are_in_place()
        if self.config.strength == 0 or self._added_later:
            return 0.0
        weights = [layer.effective_weight() for layer in self._layers]
        return self.config.strength * total_asymmetry(weights, self.config.pairing, self.context.fused)

    def after_backward(self, step: Step) -> Tensor | float:
        if not self._added_later:
            return 0.0
        return add_gradient([layer.weight for layer in self._layers], self.config.pairing, self.config.strength)

    def _passes_are_in_place(self) -> bool:
        """Whether weights are the trained ones, so that the gradient may be added to theirs, and passes serve."""
        latent = all(isinstance(layer.weight_transform, Unfilled) for layer in self._layers)
        weights = [layer.weight for layer in self._layers]
        return self.context.fused and latent and all(w.requires_grad for w in weights) and _served(weights)

    def metrics(self) -> dict[str, float]:
        """The mean of the layers' L_sym."""
        with torch.no_grad():
            values = [asymmetry(layer.effective_weight(), self.config.pairing) for layer in self._layers]
            return {"symreg/asymmetry": float(torch.stack(values).mean())}
