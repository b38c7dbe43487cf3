"""Batch norm re-estimation. Nagel, Fournarakis, Bondarenko, Blankevoort, ICML 2022 (arXiv 2203.11086, section 5.1).

Oscillating weights shift the statistics of a layer's output from step to step, so the running averages that batch norm
keeps in training match no single quantized network. After a network is rounded, this method replaces the statistics
of each batch norm by averages over N batches of training images, without augmentation.

Equations, for the input x_j of a batch norm in batch j, shapes (C,):

    running_mean = 1/N sum_j mean(x_j),        running_var = 1/N sum_j var(x_j)

var is the unbiased variance, as in torch's own running average. Meanwhile batch norms normalise each batch by its own
statistics, as in training. All other layers are in evaluation mode, so dropout is off.

Use: it trains nothing; alone it is float training. It comes last in a stack, [lsq, bn_reestimation], since
it rounds the layers that the methods before it left alone. Among `deploy.methods`, [rtn, bn_reestimation], the same
weights are reported with both statistics.

Deployment: the statistics of every deployed copy are re-estimated, also at "float". The latent weights of a network
that was trained through a quantizer do not match its statistics either, and compared rows should differ only in their
rounding. It costs N forward passes per bit-width and evaluation. Without batch norm, this method does nothing.

Defaults: 50 batches, from the authors' released code (Qualcomm-AI-research/oscillations-qat). They are the first 50
that `calibration` yields; if the training images give fewer, these repeat.

Deviations: a smaller last batch is left out, since it would have the weight of a full one.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.core.layer_points import AnyPoint
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.deploy import round_weights


class BatchNormReestimation(Method):
    """Statistics of batch norm for the network as it is deployed."""

    kind, acts_on = "deployment", "batch norm statistics"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["bn_reestimation"] = "bn_reestimation"
        batches: int = Field(50, ge=1, le=100_000, description="training batches to average over (released code: 50)")

    config: Config
    needs_target_bit: ClassVar[bool] = False
    changes_activations = True

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(batches=2)

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        norms = batch_norms(model)
        if norms:
            context = self.context
            round_weights(model, point, context.scale, context.quantizer, context.exclude)
            reestimate(model, norms, calibration, self.config.batches)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms (1 to 3 dimensions) of a model that keep running statistics."""
    found = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in found if layer.track_running_stats and layer.running_mean is not None]


def reestimate(model: nn.Module, norms: list[_BatchNorm], calibration: Calibration, count: int) -> None:
    """Replace the running statistics of `norms` by their averages over batches, in place.

    model: in evaluation mode, before and after.
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
