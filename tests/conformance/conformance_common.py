"""Which of the suite's models a method can be tested on, and what of a layer shares a step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.config import component
from harness.features import lacking
from harness.layers import QuantLayer
from harness.methods import find
from harness.models import build_model
from harness.quantization import WeightQuantizer

DIGITS = (1, 8, 8)


def fitting(method: str, models: Mapping[str, dict[str, Any]]) -> list[str]:
    """The models, by name, that have what the method requires; in their order."""
    networks = {name: build_model(component("model", knobs), DIGITS, 10, seed=0) for name, knobs in models.items()}
    return [name for name, network in networks.items() if not lacking(network, find(method).requires)]


def pairs(methods: list[str], models: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Every method with every model that it fits."""
    return [(method, model) for method in methods for model in fitting(method, models)]


def groups(source: QuantLayer, weight: Tensor, bits: int | None = None) -> list[Tensor]:
    """The parts of a deployed weight that share a step: the whole, or the channels where its quantizer has one each.

    source: the layer that was trained. bits: of the deployment; its own quantizer counts at its own bit-width.
    """
    own = source.weight_quantizer
    per_channel = isinstance(own, WeightQuantizer) and own.per_channel and bits in (None, own.bits)
    return list(weight) if per_channel else [weight]
