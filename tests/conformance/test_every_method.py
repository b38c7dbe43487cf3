"""What every method must do, whatever it is. A new file in harness/methods/ is picked up by itself.

The checks are those of harness/conformance, which `python -m harness.conform` carries out on methods from outside.
"""

from pathlib import Path

import pytest
import torch
from conformance_common import each_once, pairs

from harness.conformance import deploying, training
from harness.conformance.common import MODELS, Case
from harness.core import registry
from harness.methods import find

METHODS = registry.names("method")
WITH_STRENGTH = [name for name in METHODS if "strength" in find(name).Config.model_fields]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_to_finite_values(method: str, device: str) -> None:
    training.it_trains_to_finite_values(Case(method, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), pairs(METHODS, MODELS))
def test_resumed_equals_uninterrupted_bit_for_bit(method: str, model: str, device: str, tmp_path: Path) -> None:
    training.a_resumed_run_equals_an_uninterrupted_one(Case(method, model, device, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), each_once(METHODS, MODELS))
def test_the_probe_of_the_network_changes_no_number(method: str, model: str, tmp_path: Path) -> None:
    training.the_probe_of_the_network_changes_no_number(Case(method, model, folder=tmp_path))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), pairs(WITH_STRENGTH, MODELS))
def test_strength_zero_equals_the_plain_run_bit_for_bit(method: str, model: str, device: str) -> None:
    training.strength_zero_is_the_plain_run(Case(method, model, device))


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_changes_nothing(method: str) -> None:
    deploying.evaluation_changes_nothing(Case(method))


@pytest.mark.parametrize("method", METHODS)
def test_deployment_leaves_the_source_untouched_and_is_on_a_grid(method: str) -> None:
    deploying.deployment_leaves_the_source_untouched_and_is_on_a_grid(Case(method))


@pytest.mark.parametrize("method", METHODS)
def test_its_configuration_goes_through_json(method: str) -> None:
    training.its_configuration_goes_through_json(Case(method))


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_from_the_same_weights_and_batches_as_float_training(method: str) -> None:
    training.it_starts_from_the_weights_of_float_training(Case(method))


@pytest.mark.parametrize("method", METHODS)
def test_its_file_says_where_it_comes_from_and_what_its_settings_are(method: str) -> None:
    training.its_file_says_what_it_is(Case(method))
