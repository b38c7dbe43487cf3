"""Which of the suite's models a method can be tested on, and what of a layer shares a step."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.methods import find
from harness.methods._requirements import lacking
from harness.models import build_model
from harness.quantization import WeightQuantizer
from harness.quantization.layers import QuantLayer
from harness.training.config import component
from harness.training.evaluator import Deployment

DIGITS = (1, 8, 8)


def fitting(method: str, models: Mapping[str, dict[str, Any]]) -> list[str]:
    """The models, by name, that have what the method requires; in their order."""
    required = find(method).requires
    return [
        name
        for name, settings in models.items()
        if not required or not lacking(_network(json.dumps(settings)), required)
    ]


@cache
def _network(settings: str) -> nn.Module:
    return build_model(component("model", json.loads(settings)), DIGITS, 10, seed=0)


def pairs(methods: list[str], models: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Every method with every model that it fits; all but the first are marked slow."""
    return [
        pytest.param(method, model, marks=pytest.mark.slow if place else ())
        for method in methods
        for place, model in enumerate(fitting(method, models))
    ]


def groups(source: QuantLayer, weight: Tensor, bits: int | None = None) -> list[Tensor]:
    """The parts of a deployed weight that share a step: the whole, or the channels where its quantizer has one each.

    source: the layer that was trained. bits: of the deployment; its own quantizer counts at its own bit-width.
    """
    own = source.weight_quantizer
    per_channel = isinstance(own, WeightQuantizer) and own.per_channel and bits in (None, own.bits)
    return list(weight) if per_channel else [weight]


def point_of_layer(found: Deployment, name: str) -> BitWidths:
    """The point of a layer in a network that was deployed at one for all: that one, unless its method chose others."""
    assert isinstance(found.point, BitWidths)
    return found.allocated.mapping[name] if found.allocated else found.point
