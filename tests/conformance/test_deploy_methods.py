"""Deploy methods that round weights cross with every way of training: on the same grid as round-to-nearest.

Those that round them given the rounding of inputs, or have a grid of their own for both, serve other points.
"""

from typing import Any

import pytest

from harness.conformance import deploying
from harness.core import registry
from harness.methods import find

ROUNDING = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "weights"]


GIVEN_INPUTS = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "weights given rounded inputs"]
ALLOCATING = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "bits of layers"]
#: Those of decoders have tests of their own (tests/methods, tests/quantization/test_key_values.py).
OF_CACHES = [name for name in registry.deploy_methods()[1:] if "keys and values" in find(name).acts_on]
#: Those that may be trained, too.
OWN_GRIDS = [name for name in registry.deploy_methods()[1:] if find(name).acts_on == "inputs, weights"]


@pytest.mark.parametrize("deploy", ROUNDING)
@pytest.mark.parametrize(
    "method", [name for name in registry.names("method") if name not in (*ROUNDING, *ALLOCATING, *OF_CACHES)]
)
def test_every_layer_of_every_network_may_become_another_value_of_its_grid(method: str, deploy: str) -> None:
    deploying.every_layer_may_become_another_value_of_its_grid(method, deploy)


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
    deploying.weights_and_inputs_are_rounded_on_grids_of_the_point(method, deploy, target)


@pytest.mark.parametrize("deploy", ALLOCATING)
@pytest.mark.parametrize(("method", "target"), PAIRS)
def test_bits_of_layers_within_a_budget(method: str, target: int | str, deploy: str) -> None:
    deploying.bits_of_layers_stay_within_a_budget(method, deploy, target)
