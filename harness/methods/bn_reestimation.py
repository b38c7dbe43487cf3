"""Batch norm re-estimation. Nagel, Fournarakis, Bondarenko, Blankevoort, ICML 2022 (arXiv 2203.11086, section 5.1).

Weights that oscillate move the statistics of their outputs from step to step, so the running averages that batch
norm kept in training fit no single quantized network. Once a network is rounded, each batch norm's statistics are
estimated anew over N batches of training images, without augmentation:

    running_mean = 1/N sum_j mean(x_j),        running_var = 1/N sum_j var(x_j)        (shapes (C,)),

x_j the layer's input in batch j, var the unbiased one, as torch keeps it. Meanwhile batch norms normalise each
batch by its own statistics, as in training; all else is in evaluation mode, so dropout stays off.

It trains nothing: alone it is float training. It comes last in a stack, [lsq, bn_reestimation], since it rounds
what the methods before it have left alone; or among `deploy.methods`, [rtn, bn_reestimation], which reports the same
weights with both statistics. Every deployed copy is treated so, "float" too: the latent weights of a network that
trained through a quantizer do not fit its statistics either, and rows that are compared should differ in
nothing but their rounding. It costs N forward passes per bit-width and evaluation; without batch norm nothing is done.

Defaults: 50 batches, from the authors' released code (Qualcomm-AI-research/oscillations-qat). They are the first of
`calibration`, which start over where the training images have fewer. Deviations: a last, smaller batch is left out,
since it would count as much as a whole one.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.core.bits import Bits
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.deploy import round_to_nearest


class BatchNormReestimation(Method):
    """Statistics of batch norm for the network as it is deployed."""

    kind, acts_on = "deployment", "batch norm statistics"

    class Config(MethodConfig):
        name: Literal["bn_reestimation"] = "bn_reestimation"
        batches: int = Field(50, ge=1, le=100_000, description="training batches to average over (released code: 50)")

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(batches=2)

    def deploy(self, model: nn.Module, bits: Bits, calibration: Calibration) -> None:
        norms = batch_norms(model)
        if norms:
            context = self.context
            round_to_nearest(model, bits, context.scale, context.quantizer, context.exclude)
            reestimate(model, norms, calibration, self.config.batches)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of a model that keep running statistics of batches, of 1 to 3 dimensions."""
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in found if layer.track_running_stats and layer.running_mean is not None]


def reestimate(model: nn.Module, norms: list[_BatchNorm], calibration: Calibration, count: int) -> None:
    """Replace the running statistics of `norms` by their averages over batches, in place.

    model: in evaluation mode, and again so afterwards.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then keeps the plain average over all batches since the reset
        norm.train()
    full = 0
    with torch.no_grad():
        for inputs, _ in calibration.batches(count):
            full = full or len(inputs)
            if len(inputs) == full:
                model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
