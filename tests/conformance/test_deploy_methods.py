"""Deploy methods that round weights cross with every way of training: on the same grid as round-to-nearest."""

from dataclasses import replace

import pytest
import torch
from conformance_common import fitting, groups

from harness.core import registry
from harness.core.bits import BitWidths
from harness.methods import find
from harness.quantization.layers import weight_layers
from harness.training.build import build
from harness.training.config import complete

MODELS = {
    "mlp5": {"name": "mlp5", "width": 12, "depth": 3},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2},
}
ROUNDING = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "weights"]


@pytest.mark.parametrize("deploy", ROUNDING)
@pytest.mark.parametrize("method", [name for name in registry.names("method") if name not in ROUNDING])
def test_every_layer_of_every_network_may_become_another_value_of_its_grid(method: str, deploy: str) -> None:
    entry = find(method).tiny_config().model_dump()
    raw = {
        "methods": [entry],
        "target_bit": 3,
        "model": MODELS[fitting(method, MODELS)[0]],
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"batch_size": 40},
        "deploy": {"scale": "keep_range"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    session = build(complete(raw))
    settings = {**find(deploy).tiny_config().model_dump(), "iterations": 30, "images": 80}
    known = {name: value for name, value in settings.items() if name in find(deploy).Config.model_fields}
    evaluator, sources = replace(session.evaluator, settings={deploy: known}), weight_layers(session.model)
    for bits in (2, 3):
        found, rounded = (
            weight_layers(evaluator.deployed(session.model, BitWidths(bits), way)) for way in (deploy, "rtn")
        )
        for name, layer in found.items():
            for own, nearest in zip(
                groups(sources[name], layer.weight),
                groups(sources[name], rounded[name].weight),  # type: ignore[arg-type]
            ):
                assert len(torch.cat([own, nearest]).unique()) <= 2**bits, "the same grid"
        other = [name for name, layer in found.items() if not torch.equal(layer.weight, rounded[name].weight)]
        assert len(other) > len(found) / 2, other
