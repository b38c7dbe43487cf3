"""Saturating nonlinearity on weights (SatNL). S. Park, Jang, E. Park, ECCV 2022 (arXiv 2208.00338).

The network trains in float, each weight w, (O, I) or (O, I, kh, kw), through

    w = kappa * tanh(v / kappa),   dw/dv = 1 - (w / kappa)^2,

v trained in its place (it keeps the name `weight`). Weights stay within +-kappa, and large ones move less than small
ones. Fills the slot weight_transform: w is what any quantizer of the stack, the tracker and deployment see, and what a
deployed network holds; v is what the optimizer and its weight decay see.

start: `function` chooses v = kappa atanh(w0 / kappa), w0 / kappa clipped to +-0.99, so that the network begins as the
float one wherever |w0| <= 0.99 kappa. `weights` sets v = w0, as in training from scratch.
kappa_unit: `absolute`, or `std`, the standard deviation of the layer's weights before training (3 of them is a useful
range). A layer without spread then has kappa 1.

kappa is a buffer, () each, so a resumed run keeps the one it began with.

Means something without a bit-width, so needs no target_bit; the loop monitors accuracy there when one is given. In a
stack, a second method that wants weight_transform is refused, and so is `oscillation`, whose gradient in closed form
would act on v.

No code was published, and the paper's text was not at hand. From secondary notes: a plain tanh, thus kappa 1.
Reconstructed: that kappa can be set, its unit, the start. Deviations known: the paper trains with (A)SAM, since small
weights are the sensitive ones. ASAM is not provided: it needs a second forward and backward pass per step, which the
loop does not have.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.layers import QuantLayer, attach

#: The largest |w| / kappa at the start; at 1, v would be infinite. A weight there still has 2 % of its gradient.
CLIP = 0.99


def saturated(latent: Tensor, kappa: Tensor) -> Tensor:
    """`kappa tanh(v / kappa)`, in the shape of v; kappa: shape (), > 0."""
    return kappa * (latent / kappa).tanh()


def latent_of(weight: Tensor, kappa: Tensor) -> Tensor:
    """The v whose `saturated` value is `weight`, clipped to +-0.99 kappa; same shape."""
    return kappa * (weight / kappa).clamp(-CLIP, CLIP).atanh()


class Saturation(nn.Module):
    """Fills weight_transform: v to w."""

    kappa: Tensor

    def __init__(self, kappa: Tensor) -> None:
        super().__init__()
        self.register_buffer("kappa", kappa)

    def forward(self, latent: Tensor) -> Tensor:
        return saturated(latent, self.kappa)


class SaturatingNonlinearity(Method):
    """Float training of weights behind a tanh; deployed by rounding the effective weights to nearest."""

    kind, acts_on = "reparametrization", "weights"

    needs_target_bit = False

    class Config(MethodConfig):
        name: Literal["satnl"] = "satnl"
        kappa: float = Field(1.0, gt=0, le=1e3, description="bound on the weights (1 is the paper's plain tanh)")
        kappa_unit: Literal["absolute", "std"] = Field(
            "absolute", description="what kappa counts: weights as they are (paper), or a layer's first deviations"
        )
        start: Literal["function", "weights"] = Field(
            "function", description="what begins as in the float network: what it computes, or the trained numbers"
        )

    config: Config

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(kappa=2.0, kappa_unit="std")

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        layers = attach(
            model, self.context.exclude, weight_transform=lambda layer: Saturation(self._kappa(layer))
        ).values()
        if self.config.start == "function":
            with torch.no_grad():
                # By identity: a shared weight must not go through the inverse twice.
                for layer in {id(layer.weight): layer for layer in layers}.values():
                    kappa = layer.weight_transform.get_buffer("kappa")
                    layer.weight.copy_(latent_of(layer.weight, kappa))

    def _kappa(self, layer: QuantLayer) -> Tensor:
        """A layer's bound, shape (), > 0."""
        weight = layer.weight.detach()
        if self.config.kappa_unit == "absolute":
            return weight.new_tensor(self.config.kappa)
        spread = weight.std(correction=0)
        return torch.where(spread > 0, self.config.kappa * spread, torch.ones_like(spread))
