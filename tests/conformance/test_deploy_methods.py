"""Deploy methods that round weights cross with every way of training: on the same grid as round-to-nearest.

Those that round them given the rounding of inputs, or have a grid of their own for both, serve other points.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conformance_common import fitting, groups
from torch import nn

from harness.core import registry
from harness.core.bits import BitWidths
from harness.methods import find
from harness.quantization import ActivationQuantizer
from harness.quantization.layers import weight_layers
from harness.quantization.observing import input_sites
from harness.training.build import build
from harness.training.config import complete

MODELS = {
    "mlp5": {"name": "mlp5", "width": 12, "depth": 3},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2},
}
ROUNDING = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "weights"]


GIVEN_INPUTS = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "weights given rounded inputs"]
ALLOCATING = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "bits of layers"]
#: Those of decoders have tests of their own (tests/methods, tests/quantization/test_key_values.py).
OF_CACHES = [name for name in registry.deploy_methods()[1:] if "keys and values" in find(name).acts_on]
#: Those that may be trained, too.
OWN_GRIDS = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "inputs, weights"]


def crossed(method: str, deploy: str, target: int | str) -> tuple[Any, Any]:
    """A session of a method, and an evaluator with short settings of the deploy method."""
    raw = {
        "methods": [find(method).tiny_config().model_dump()],
        "target_bit": target,
        "model": MODELS[fitting(method, MODELS)[0]],
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"batch_size": 40},
        "deploy": {"scale": "keep_range"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    session = build(complete(raw))
    settings = {**find(deploy).tiny_config().model_dump(), "iterations": 30, "images": 80}
    known = {name: value for name, value in settings.items() if name in find(deploy).Config.model_fields}
    return session, replace(session.evaluator, settings={deploy: known})


@pytest.mark.parametrize("deploy", ROUNDING)
@pytest.mark.parametrize(
    "method", [name for name in registry.names("method") if name not in (*ROUNDING, *ALLOCATING, *OF_CACHES)]
)
def test_every_layer_of_every_network_may_become_another_value_of_its_grid(method: str, deploy: str) -> None:
    session, evaluator = crossed(method, deploy, 3)
    sources = weight_layers(session.model)
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


#: Targets of those run by default; all others are slow only by their number.
QUICK: dict[str, tuple[int | str, ...]] = {
    "none": (3,),
    "oscillation": (3,),
    "ste": (3,),
    "lsq": (3, "w3a4"),
    "any_precision": ("w3a4",),
}


def pairs_with(quick: dict[str, tuple[int | str, ...]], *more: str) -> list[Any]:
    """Trained methods and targets, and what is given besides; all but the quick ones are marked slow."""
    return [
        pytest.param(method, target, *more, marks=() if target in quick.get(method, ()) else pytest.mark.slow)
        for method in registry.names("method")
        for target in (3, "w3a4")
        if method not in (*ROUNDING, *GIVEN_INPUTS, *ALLOCATING, *OF_CACHES, *more)
    ]


PAIRS = pairs_with(QUICK)
QUICK_OWN_GRIDS: dict[str, tuple[int | str, ...]] = {"none": (3,), "lsq": ("w3a4",)}
CROSSED = [
    each
    for deploys, quick in ((GIVEN_INPUTS, QUICK), (OWN_GRIDS, QUICK_OWN_GRIDS))
    for deploy in deploys
    for each in pairs_with(quick, deploy)
]


@pytest.mark.parametrize(("method", "target", "deploy"), CROSSED)
def test_weights_and_inputs_are_rounded_on_grids_of_the_point(method: str, target: int | str, deploy: str) -> None:
    session, evaluator = crossed(method, deploy, target)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    found, again, rounded = (evaluator.deployed(session.model, "w3a4", way) for way in (deploy, deploy, "rtn"))
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in found.state_dict().items())
    layers, nearest, sources = (weight_layers(each) for each in (found, rounded, session.model))
    for name, layer in layers.items():
        assert all(len(part.unique()) <= 8 for part in groups(sources[name], layer.weight))
    other = [name for name, layer in layers.items() if not torch.equal(layer.weight, nearest[name].weight)]
    assert len(other) >= len(layers) / 2, "some layers of an untrained network get inputs that are all rounded to 0"
    assert bits_of_inputs(found) == bits_of_inputs(rounded)
    assert bool(found(session.dataset.batch(session.dataset.val, slice(0, 20))[0]).isfinite().all())
    assert not find(deploy).serves(BitWidths(3))


def bits_of_inputs(model: nn.Module) -> dict[str, int]:
    held = {name: site.held for name, site in input_sites(model).items()}
    return {name: each.bits for name, each in held.items() if isinstance(each, ActivationQuantizer)}


@pytest.mark.parametrize("deploy", ALLOCATING)
@pytest.mark.parametrize(("method", "target"), PAIRS)
def test_bits_of_layers_within_a_budget(method: str, target: int | str, deploy: str) -> None:
    session, evaluator = crossed(method, deploy, target)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    for point in (BitWidths(3), BitWidths(3, 4)):
        first, again = (evaluator.deployments(session.model, [(deploy, point)])[0] for _ in range(2))
        assert first.allocated is not None
        assert first.allocated == again.allocated
        states = first.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        points, layers = first.allocated.mapping, weight_layers(first.model)
        assert set(points) == {*layers, "*"}
        bits = torch.tensor([points[name].weights or 0 for name in layers]).double()
        sizes = torch.tensor([layer.weight.numel() for layer in layers.values()])
        assert float((bits * sizes).sum() / sizes.sum()) <= 3 + 1e-6
        for name, layer in layers.items():
            own = points[name].weights
            assert own is not None
            assert all(
                len(part.unique()) <= 2**own for part in groups(weight_layers(session.model)[name], layer.weight, own)
            )
        quantizers = [each for each in first.model.modules() if isinstance(each, ActivationQuantizer)]
        assert bool(quantizers) == point.has_activations
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
