"""Points by layer that do not fit a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from harness.core.errors import UserError
from harness.core.layer_points import AnyPoint, LayerPoints
from harness.quantization.layers import glob_patterns, weight_layers
from harness.quantization.matching import check_keys, deciding
from harness.quantization.quantizer import WeightQuantizer

#: Of layers that are named in an error message, at most.
_MOST_SHOWN = 4


def check_layer_points(
    model: nn.Module, points: Iterable[AnyPoint], exclude: Iterable[str] = (), norms: bool = False
) -> None:
    """Refuse points by layer that do not fit a model, which `attach` and the methods have prepared.

    Raises UserError for a name or glob that matches no layer or decides about none, and for layers that none matches
    and that have no quantizer of their own either: they would silently stay float. norms: whether norm layers count.
    """
    layers = weight_layers(model, glob_patterns(exclude), norms)
    for point in points:
        if isinstance(point, LayerPoints):
            try:
                _check(point.mapping, layers)
            except UserError as error:
                raise UserError(f"deploy.bits: {point}: {error}") from None


def _check(mapping: Mapping[str, Any], layers: Mapping[str, nn.Module]) -> None:
    check_keys(mapping, layers, "bits")
    keys = {name: deciding(mapping, name) for name in layers}
    for key in mapping:
        if key != "*" and key not in keys.values():
            raise UserError(f"{key!r} has no effect: names or earlier globs decide about its layers; write it earlier")
    unfilled = [name for name, key in keys.items() if key is None and not _has_quantizer(layers[name])]
    if unfilled:
        more = f" and {len(unfilled) - _MOST_SHOWN} more" if len(unfilled) > _MOST_SHOWN else ""
        raise UserError(
            f"no point for {', '.join(unfilled[:_MOST_SHOWN])}{more}, which have no quantizer of their own whose bits "
            "they could keep; add one for the other layers, such as '*': 8 or '*': float"
        )


def _has_quantizer(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "weight_quantizer", None), WeightQuantizer)
