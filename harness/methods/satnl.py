"""Saturating nonlinearity on weights (SatNL). S. Park, Jang, E. Park, ECCV 2022 (arXiv 2208.00338).

Float training of weights behind a tanh: they stay within +-kappa, and large ones move less than small ones.

Equations. Each weight w, (O, I) or (O, I, kh, kw), is computed from a trained v (the parameter named `weight`):

    w = kappa * tanh(v / kappa),   dw/dv = 1 - (w / kappa)^2

Slots: it fills weight_transform. Quantizers of the stack, the tracker and deployment see w, and a deployed network
holds w. The optimizer and its weight decay act on v.

Target bit: not needed, since no bit-width enters. If one is given, the loop monitors the accuracy at that bit-width.

Settings: `start: function` sets v = kappa atanh(w0 / kappa) with w0 / kappa clipped to +-0.99, so each weight with
|w0| <= 0.99 kappa starts at its float value. `start: weights` sets v = w0, as in training from scratch. `kappa_unit`:
kappa is `absolute`, or in units of the layer's standard deviation before training (`std`; 3 is a useful value). In a
layer without spread kappa is then 1. kappa is a buffer, () per layer, so a resumed run keeps its initial value.

Stacks: a second method that fills weight_transform is refused, and so is `oscillation`, whose closed-form gradient
would act on v.

Sources: no code was published, and the paper's text was not available. From secondary notes: a plain tanh, so kappa 1.
Reconstructed: kappa as a setting, its unit, the start.

Deviations known: the paper trains with (A)SAM, since small weights are the sensitive ones. ASAM is not provided: it
needs a second forward and backward pass per step, which the training loop does not have.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.layers import QuantLayer, attach

#: The largest initial |w| / kappa; at 1, v would be infinite. A weight there still has 2 % of its gradient.
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
            "absolute", description="unit of kappa: absolute (paper), or the layer's initial standard deviation"
        )
        start: Literal["function", "weights"] = Field(
            "function", description="what equals the float network at the start: its function (w), or the trained v"
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
                # Keyed by identity: a shared weight must not go through the inverse twice.
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
