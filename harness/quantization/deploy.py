"""Post-training quantization: rounding every weight of a model to nearest."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.core.bits import FLOAT, Bits, ScalePolicy
from harness.core.config_base import QuantizerConfig
from harness.quantization.grid import levels
from harness.quantization.layers import QuantLayer, Unfilled, attach, weight_layers
from harness.quantization.quantizer import WeightQuantizer, make_quantizer


def round_to_nearest(
    model: nn.Module,
    bits: Bits | Mapping[str, Bits],
    scale: ScalePolicy = "recalibrate",
    quantizer: QuantizerConfig | None = None,
    exclude: tuple[str, ...] = (),
) -> nn.Module:
    """Replace every weight by its quantized value, in place; slots are emptied. Returns the model.

    bits: 2 to 8 or "float" (the latent weights themselves), or one per layer name. A layer with a quantizer of
    its own keeps it at its own bits; at others `scale` chooses: keep its step, keep its range, or recalibrate,
    that is round with the default quantizer (`quantizer`) fitted to the latent weights. Layers that are deployed
    already stay as they are, so round a copy. Raises UserError for impossible bits.
    """
    layers = weight_layers(model, exclude)
    attach(model, exclude)
    for name, layer in layers.items():
        assert isinstance(layer, QuantLayer)
        if layer.deployed:
            continue
        with torch.no_grad():
            weight = layer.effective_weight()
            layer_bits = bits[name] if isinstance(bits, Mapping) else bits
            if layer_bits != FLOAT:
                weight = _deploy_quantizer(layer, weight, layer_bits, scale, quantizer or QuantizerConfig())(weight)
            set_deployed(layer, weight)
    return model


def set_deployed(layer: QuantLayer, weight: Tensor) -> None:
    """Give a layer the weight it is deployed with and empty its weight slots; for `Method.deploy`."""
    # A parameter of its own: what shares the trained one (a tied layer, an embedding) must keep it as it is.
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.weight_transform, layer.weight_quantizer = Unfilled(), Unfilled()
    layer.deployed = True


def _deploy_quantizer(
    layer: QuantLayer, weight: Tensor, bits: Bits, scale: ScalePolicy, quantizer: QuantizerConfig
) -> WeightQuantizer:
    levels(bits)  # type: ignore[arg-type]  # refuses what is no bit-width
    assert isinstance(bits, int)
    own = layer.weight_quantizer
    if isinstance(own, WeightQuantizer) and (scale != "recalibrate" or bits == own.bits):
        return own.at_bits(bits, "keep_range" if scale == "keep_range" else "keep_step")
    return make_quantizer(quantizer, bits).to(weight.device).fit(weight)
