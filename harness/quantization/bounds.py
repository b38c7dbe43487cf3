"""Learned steps and ranges stay positive in training loops that know nothing of them.

The harness' own methods call a quantizer's `project` after each optimizer step. A step that an optimizer moves past 0
would make its layer constant, without any message.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from harness.kernels import dispatch
from harness.quantization import layers
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import Filling, QuantLayer
from harness.quantization.quantizer import WeightQuantizer


def attach(
    model: nn.Module, exclude: str | Iterable[str] = (), norms: bool = False, **slots: Filling
) -> dict[str, QuantLayer]:
    found = layers.attach(model, exclude, norms, **slots)
    for layer in found.values():
        for quantizer in _bounded(layer):
            quantizer.register_forward_pre_hook(_before_forward)
    return found


attach.__doc__ = (layers.attach.__doc__ or "").replace(
    "Returns the layers by name.",
    "Learned steps and ranges that an optimizer has moved\n    out of their bounds are put back at the next forward "
    "pass. Returns the layers by name.",
)


def project(model: nn.Module) -> None:
    """Put the learned steps and ranges of a network back inside their bounds, in place."""
    for quantizer in _bounded(model):
        if quantizer.fitted:
            quantizer.project()


def _bounded(module: nn.Module) -> list[Any]:
    """Its quantizers that have bounds."""
    kinds = WeightQuantizer, ActivationQuantizer
    return [each for each in module.modules() if isinstance(each, kinds) and hasattr(each, "project")]


def _before_forward(quantizer: Any, inputs: tuple[Any, ...]) -> None:
    # A graph that torch records must not change a parameter, nor must a function that it transforms.
    if quantizer.fitted and dispatch.eager(inputs[0]):
        quantizer.project()
