"""Quantizers of activations in training: for methods whose target has bits for activations, such as w4a4."""

from collections.abc import Callable

from torch import nn

from harness.methods.base import Calibration, Context, observed_inputs
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.inputs import fill_inputs
from harness.quantization.observed import Observed
from harness.quantization.observing import Site

#: Gives the fitted quantizer of an input, from its bits, what calibration saw of it, and its slot.
Build = Callable[[int, Observed, Site], ActivationQuantizer]


def quantize_in_training(
    model: nn.Module, context: Context, calibration: Calibration, build: Build
) -> list[ActivationQuantizer]:
    """Fill the slots for activations if the target has bits for them; call it in `prepare`. Returns the quantizers.

    Inputs are observed with weights and activations in float. `activations.first_last` and `activations.attention`
    count as at deployment. Raises UserError for networks in which that cannot be done.
    """
    point, config = context.point, context.activations
    if point is None or point.activations is None:
        return []
    seen = observed_inputs(model, calibration, context)
    return list(fill_inputs(model, point.activations, config, seen, build, context.exclude).values())
