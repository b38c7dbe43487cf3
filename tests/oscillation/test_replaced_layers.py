"""Weights and layers that are replaced after a regularizer or a tracker was made."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from harness import OscillationRegularizer, OscillationTracker, attach
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def gradients(model: nn.Module, regularizer: OscillationRegularizer) -> tuple[float, list[Tensor | None]]:
    model.zero_grad()
    return float(regularizer.add_gradient()), [p.grad for p in model.parameters()]


def fresh(model: nn.Module, **settings: object) -> tuple[float, list[Tensor | None]]:
    """What a regularizer made now says of a copy."""
    copied = copy.deepcopy(model)
    return gradients(copied, OscillationRegularizer(copied, 3, 1.0, **settings))  # type: ignore[arg-type]


def assert_same(found: tuple[float, list[Tensor | None]], expected: tuple[float, list[Tensor | None]]) -> None:
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("range_", ["max", "mse"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weights_that_were_assigned(fused: bool, range_: str, granularity: str) -> None:
    model, config = network(), QuantizerConfig(range=range_, granularity=granularity)  # type: ignore[arg-type]
    regularizer = OscillationRegularizer(model, 3, 1.0, config, fused=fused)
    regularizer.add_gradient()
    other = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    assert_same(gradients(model, regularizer), fresh(model, quantizer=config, fused=fused))


@pytest.mark.parametrize("rows", [4, 9])
def test_a_new_parameter_of_another_shape(rows: int) -> None:
    model = network()
    regularizer = OscillationRegularizer(model, 3, 1.0, QuantizerConfig(granularity="channel", range="mse"))
    model[2].weight = nn.Parameter(torch.randn(rows, 5))
    assert_same(
        gradients(model, regularizer), fresh(model, quantizer=QuantizerConfig(granularity="channel", range="mse"))
    )


def test_a_new_head_is_reported_and_regularized() -> None:
    model = network()
    regularizer = OscillationRegularizer(model, 3, 1.0)
    model[2] = nn.Linear(5, 7)
    with pytest.warns(UserWarning, match="layer '2' was put into the model later: it is regularized from now on"):
        found = gradients(model, regularizer)
    assert_same(found, fresh(model))
    with warnings.catch_warnings(action="error"):
        regularizer.add_gradient()


def test_a_layer_that_was_put_between_others() -> None:
    model = network()
    regularizer, tracker = OscillationRegularizer(model, 3, 1.0), OscillationTracker(model, 3)
    model[1] = nn.Sequential(nn.ReLU(), nn.Linear(5, 5))
    with pytest.warns(UserWarning, match=r"layer '1\.1' was put into the model later: it is regularized"):
        found = gradients(model, regularizer)
    assert_same(found, fresh(model))
    with pytest.warns(UserWarning, match=r"layer '1\.1' .*: this tracker does not watch it"):
        tracker.update()
    assert not any("1_1" in name for name in tracker.metrics())


def test_layers_that_are_frozen_freed_and_tied_later() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    model[0].weight.requires_grad_(False)
    regularizer = OscillationRegularizer(model, 3, 1.0)
    model[0].weight.requires_grad_(True)
    model[2].weight = model[1].weight
    assert_same(gradients(model, regularizer), fresh(model))
    model[1].weight.requires_grad_(False)
    assert_same(gradients(model, regularizer), fresh(model))


def test_slots_that_are_attached_later_are_no_new_layers() -> None:
    model = network()
    regularizer, tracker = OscillationRegularizer(model, 3, 1.0), OscillationTracker(model, 3)
    attach(model)
    with warnings.catch_warnings(action="error"):
        regularizer.add_gradient()
        tracker.update()


def test_what_cannot_be_regularized_any_more_is_refused() -> None:
    model = network()
    regularizer = OscillationRegularizer(model, 3, 1.0)
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(UserError, match="layer '0': the weight of this Linear is computed"):
        regularizer.add_gradient()
    model = network()
    regularizer = OscillationRegularizer(model, 3, 1.0)
    model[0] = nn.Conv1d(6, 5, 1)
    with pytest.raises(UserError, match="layer '0': weights of Conv1d cannot be quantized"):
        regularizer.add_gradient()
    model = network()
    regularizer = OscillationRegularizer(model, 3, 1.0)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="finds no trainable"):
        regularizer.add_gradient()


@pytest.mark.parametrize("fused", [True, False])
def test_a_tracker_of_weights_that_changed_their_shape(fused: bool) -> None:
    model = network()
    tracker = OscillationTracker(model, 3, fused=fused)
    model[2].weight = nn.Parameter(torch.randn(1, 5))
    with pytest.raises(UserError, match=r"had shape \(4, 5\) and has \(1, 5\) now"):
        tracker.update()
