"""What is asked of each layer of a network that is to be rounded, checked before any number changes."""

from collections.abc import Iterable, Mapping
from glob import escape
from typing import Any

from torch import nn

from harness.core.bits import FLOAT, LEGAL_POINTS, BitWidths, PlainPoint
from harness.core.errors import UserError, nearest
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import QuantLayer, excluded_by_attach, glob_patterns, weight_layers
from harness.quantization.matching import check_keys, deciding
from harness.quantization.quantizer import WeightQuantizer
from harness.quantization.slots import Unfilled

#: For a layer: at the bit-width of its own quantizer; where it has none, as it is.
TRAINED = "trained"
WantedBits = BitWidths | PlainPoint | None
#: Of each layer, by name; None: trained.
Wanted = dict[str, BitWidths | None]


def checked_layers(
    model: nn.Module, bits: Any, exclude: str | Iterable[str], norms: bool
) -> tuple[dict[str, Any], Wanted]:
    """The layers by name, and what is asked of each. Raises UserError."""
    names = set(bits) if isinstance(bits, Mapping) else set()
    left = [escape(name) for name in excluded_by_attach(model) if name not in names]
    layers = weight_layers(model, (*glob_patterns(exclude), *left), norms)
    wanted = {name: checked(value) for name, value in _by_layer(bits, layers).items()}
    _check_trained(layers, wanted)
    return dict(layers), wanted


def _by_layer(bits: Any, layers: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What is asked for each layer, not checked yet."""
    if isinstance(bits, Mapping):
        check_keys(bits, layers, "bits")
    return {name: asked(bits, name) for name in layers}


def asked(bits: Any, name: str) -> Any:
    """What is asked for a layer, or for a product of attention, not checked yet."""
    if not isinstance(bits, Mapping):
        return bits
    key = deciding(bits, name)
    return TRAINED if key is None else bits[key]


def checked(bits: Any) -> BitWidths | None:
    """A legal point, None for the bits of a layer's own quantizer."""
    if bits is None or bits == TRAINED:
        return None
    try:
        return BitWidths.of(bits)
    except UserError:
        hint = nearest(bits, (FLOAT, TRAINED)) if isinstance(bits, str) else ""
        raise UserError(f"bits: {bits!r} is no bit-width{hint} ({LEGAL_POINTS}, {TRAINED})") from None


def _check_trained(layers: Mapping[str, nn.Module], wanted: Mapping[str, BitWidths | None]) -> None:
    """Refuse "trained" where it says nothing: for another module in the slot, or where no layer was trained at all."""
    trained = {name: layers[name] for name, bits in wanted.items() if bits is None}
    for name, layer in trained.items():
        own = getattr(layer, "weight_quantizer", None)
        if not isinstance(own, WeightQuantizer | Unfilled | None):
            raise UserError(f"bits: layer {name!r} has a {type(own).__name__}, which has no bit-width; give it one")
    quantized = [each for each in layers.values() if isinstance(each, QuantLayer)]
    if len(trained) == len(layers) and not any(
        each.deployed or isinstance(each.weight_quantizer, WeightQuantizer) for each in quantized
    ):
        raise UserError("bits: no layer has a quantizer of its own whose bit-width could be used; give one, 2 to 8")


def check_not_deployed(model: nn.Module, layers: Mapping[str, nn.Module], wanted: Wanted) -> None:
    """Refuse a point where nothing is left to round: all layers are deployed, no activations, keys or values new.

    "trained" says no point of its own, and stays without effect.
    """
    points = [each for each in wanted.values() if each is not None]
    if not points or not all(isinstance(each, QuantLayer) and each.deployed for each in layers.values()):
        return
    held = any(isinstance(each, ActivationQuantizer) for each in model.modules())
    if any(each.has_kv or (each.has_activations and not held) for each in points):
        return
    raise UserError(
        "every layer is deployed already, and the weights that it was rounded from are gone: "
        "round a copy (copy.deepcopy) of the network before it was"
    )
