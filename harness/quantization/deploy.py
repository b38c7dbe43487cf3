"""Post-training quantization: rounding every weight of a model to nearest, and activations at points that say so."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths, ScalePolicy
from harness.core.config_base import ActivationsConfig, KeyValueConfig, QuantizerConfig, section
from harness.core.layer_points import LayerPoints
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.batches import check_batches
from harness.quantization.bounds import project
from harness.quantization.inputs import BitsOf, quantize_inputs
from harness.quantization.key_value_points import key_value_bits, quantize_keys_and_values
from harness.quantization.layers import QuantConv2d, QuantLayer, QuantLinear, give_slots
from harness.quantization.observed import Observed
from harness.quantization.observing import expose, is_observed, observed_for
from harness.quantization.quantizer import WeightQuantizer, make_quantizer
from harness.quantization.slots import Unfilled
from harness.quantization.wanted import Wanted, WantedBits, asked, check_not_deployed, checked, checked_layers


def round_to_nearest(
    model: nn.Module,
    bits: WantedBits | LayerPoints | Mapping[str, WantedBits] = None,
    scale: ScalePolicy = "recalibrate",
    quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    activations: ActivationsConfig | Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | Mapping[str, Observed] | None = None,
    kv: KeyValueConfig | Mapping[str, Any] | None = None,
) -> nn.Module:
    """Replace every weight by its quantized value, in place, and quantize activations where the point says so.

    bits: None or "trained": each layer at the bits of its own quantizers, a layer without one as it is. 2 to 8 (weights
    alone), "w4a8", "w4kv4", or "float" (the latent weights themselves): all layers. Or a mapping of layer names and
    globs to any of these: a name counts before a glob, an earlier glob before a later one, "*" last; a layer that none
    matches is "trained". Layers that `attach` left out stay as they are, unless a mapping has their very name, as do
    those of `exclude`. Norm layers count where they have slots or `quantizer` has `norms: quantized`.

    A layer with a quantizer of its own keeps it at its own bits; at others `scale` chooses: keep its step, keep its
    range, or recalibrate, that is round with the default quantizer (`quantizer`) fitted to the latent weights. Layers
    that are deployed already stay as they are, so round a copy (`copy.deepcopy`) for each point: the latent weights are
    gone from a network once it is rounded.

    activations: how inputs of layers and operands of attention are quantized. calibration: batches of inputs as the
    model takes them (a tuple is several arguments), of which the first `calibration_batches` are used, or what
    `observe` saw; needed where a point has bits for activations, unless ranges are per token. With a mapping of layers,
    `first_last` has no effect. At points without activations the slots of activation quantizers are emptied.
    kv: how keys and values are quantized.

    Returns the model. Raises UserError, before any number changes, for impossible bits, for a name or glob that matches
    no layer, for "trained" where no layer has a quantizer, for a network whose layers are all deployed already, for
    calibration data that are missing or have NaN, for attention whose products cannot be reached, for `first_last`
    where one layer is both, and for bits of keys and values where the model has no slots for these.
    """
    weights = section(quantizer, QuantizerConfig, "quantizer")
    written = bits.mapping if isinstance(bits, LayerPoints) else bits
    check_not_deployed(model, *checked_layers(model, written, exclude, weights.quantizes_norms))
    return round_rest(model, written, scale, weights, exclude, activations, calibration, kv)


def round_rest(
    model: nn.Module,
    point: WantedBits | LayerPoints | Mapping[str, WantedBits] = None,
    scale: ScalePolicy = "recalibrate",
    quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    activations: ActivationsConfig | Mapping[str, Any] | None = None,
    calibration: Iterable[Any] | Mapping[str, Observed] | None = None,
    kv: KeyValueConfig | Mapping[str, Any] | None = None,
) -> nn.Module:
    """`round_to_nearest` of what a method has left, which may be nothing."""
    weights = section(quantizer, QuantizerConfig, "quantizer")
    if not (calibration is None or is_observed(calibration)):
        check_batches(calibration)
    bits = point.mapping if isinstance(point, LayerPoints) else point
    settings = section(activations, ActivationsConfig, "activations")
    layers, wanted = checked_layers(model, bits, exclude, weights.quantizes_norms)
    project(model)
    cache, caches = section(kv, KeyValueConfig, "kv"), key_value_bits(model, bits, exclude)
    slotted = _with_slots(model, layers, wanted)
    observed = observed_for(model, wanted.values(), settings, calibration, exclude)
    _quantize_inputs(model, bits, wanted, scale, settings, observed, exclude)
    _round(slotted, wanted, scale, weights)
    quantize_keys_and_values(caches, cache)
    return model


def round_weights(
    model: nn.Module,
    point: WantedBits | LayerPoints,
    scale: ScalePolicy,
    quantizer: QuantizerConfig,
    exclude: Iterable[str] = (),
) -> nn.Module:
    """The part of `round_to_nearest` that is about weights, for `Method.deploy`; activations stay as they are."""
    bits = point.mapping if isinstance(point, LayerPoints) else point
    layers, wanted = checked_layers(model, bits, exclude, quantizer.quantizes_norms)
    _round(_with_slots(model, layers, wanted), wanted, scale, quantizer)
    return model


def round_inputs(
    model: nn.Module,
    point: WantedBits | LayerPoints,
    scale: ScalePolicy,
    quantizer: QuantizerConfig,
    exclude: Iterable[str],
    activations: ActivationsConfig,
    observed: Mapping[str, Observed],
) -> nn.Module:
    """The part of `round_to_nearest` that is about activations, for `Method.deploy`; weights stay, but get slots."""
    bits = point.mapping if isinstance(point, LayerPoints) else point
    layers, wanted = checked_layers(model, bits, exclude, quantizer.quantizes_norms)
    _with_slots(model, layers, wanted)
    _quantize_inputs(model, bits, wanted, scale, activations, observed, exclude)
    return model


def _quantize_inputs(
    model: nn.Module,
    bits: Any,
    wanted: Wanted,
    scale: ScalePolicy,
    config: ActivationsConfig,
    observed: Mapping[str, Observed] | None,
    exclude: str | Iterable[str],
) -> None:
    if config.attention and any(point and point.activations for point in wanted.values()):
        expose(model, exclude)
    keep = None if scale == "recalibrate" else scale
    quantize_inputs(model, _activation_bits(bits, wanted), config, observed, keep, exclude)


def _with_slots(model: nn.Module, layers: Mapping[str, nn.Module], wanted: Wanted) -> dict[str, QuantLayer]:
    """Those layers of which something is asked, or which have slots already."""
    chosen = {name: layer for name, layer in layers.items() if wanted[name] or isinstance(layer, QuantLayer)}
    return give_slots(model, chosen)


def _round(layers: Mapping[str, QuantLayer], wanted: Wanted, scale: ScalePolicy, config: QuantizerConfig) -> None:
    for name, layer in layers.items():
        if layer.deployed:
            continue
        layer_bits = _bits_of(layer, wanted[name])
        with torch.no_grad():
            weight = layer.effective_weight()
            if layer_bits is not None:
                weight = _deploy_quantizer(layer, weight, layer_bits, scale, config)(weight)
            set_deployed(layer, weight)


class Choice(NamedTuple):
    """A layer, with slots, that is to be rounded to some bits."""

    layer: QuantLayer
    bits: int
    scale: ScalePolicy
    quantizer: QuantizerConfig

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        """The values among which round-to-nearest would choose for a weight, ascending, (1, L) or (O, L)."""
        return _deploy_quantizer(self.layer, weight, self.bits, self.scale, self.quantizer).values(weight)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The layer's effective weight as round-to-nearest would have it."""
        weight = self.layer.effective_weight()
        rounded: Tensor = _deploy_quantizer(self.layer, weight, self.bits, self.scale, self.quantizer)(weight)
        return rounded


def weight_bits(
    model: nn.Module, point: Any, exclude: str | Iterable[str] = (), norms: bool = False
) -> dict[str, int | None]:
    """The bits that `round_to_nearest` gives the weight of each layer, by name; None: float. Call it before that."""
    bits = point.mapping if isinstance(point, LayerPoints) else point
    layers, wanted = checked_layers(model, bits, exclude, norms)
    return {name: _bits_of(layer, wanted[name]) for name, layer in layers.items()}


def choices(
    model: nn.Module,
    point: WantedBits | LayerPoints,
    scale: ScalePolicy,
    quantizer: QuantizerConfig,
    exclude: Iterable[str] = (),
) -> dict[str, Choice]:
    """The linear and convolution layers that `round_weights` would round, by name."""
    bits = point.mapping if isinstance(point, LayerPoints) else point
    layers, wanted = checked_layers(model, bits, exclude, quantizer.quantizes_norms)
    found: dict[str, Choice] = {}
    for name, layer in _with_slots(model, layers, wanted).items():
        layer_bits = _bits_of(layer, wanted[name])
        if layer_bits is not None and not layer.deployed and isinstance(layer, QuantLinear | QuantConv2d):
            found[name] = Choice(layer, layer_bits, scale, quantizer)
    return found


def set_deployed(layer: QuantLayer, weight: Tensor) -> None:
    """Give a layer the weight it is deployed with and empty its weight slots; for `Method.deploy`."""
    # A parameter of its own: what shares the trained one (a tied layer, an embedding) must keep it as it is.
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.weight_transform, layer.weight_quantizer = Unfilled(), Unfilled()
    layer.deployed = True


def _activation_bits(bits: Any, wanted: Wanted) -> int | BitsOf | None:
    """The bits of activations: one number for all, or what is asked for each layer and product."""
    if not isinstance(bits, Mapping) and (point := checked(bits)) is not None:
        return point.activations

    def of(name: str, own: nn.Module) -> int | None:
        point = wanted[name] if name in wanted else checked(asked(bits, name))
        if point is None:
            return own.bits if isinstance(own, ActivationQuantizer) else None
        return point.activations

    return of


def _bits_of(layer: nn.Module, point: BitWidths | None) -> int | None:
    """The bits of a layer's weight at its point, or of its own quantizer without one; None: float."""
    own = getattr(layer, "weight_quantizer", None)
    if point is None:
        return own.bits if isinstance(own, WeightQuantizer) else None
    return point.weights


def _deploy_quantizer(
    layer: QuantLayer, weight: Tensor, bits: int, scale: ScalePolicy, quantizer: QuantizerConfig
) -> WeightQuantizer:
    own = layer.weight_quantizer
    if isinstance(own, WeightQuantizer) and (scale != "recalibrate" or bits == own.bits):
        return own.at_bits(bits, "keep_range" if scale == "keep_range" else "keep_step")
    return make_quantizer(quantizer, bits, layer=layer).to(weight.device).fit(weight)
