"""Learned steps stay positive in a training loop that calls nothing after its optimizer's step."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import harness
from harness import LSQQuantizer, attach, round_to_nearest
from harness.quantization import CompandingQuantizer, layers
from harness.quantization.quantizer import WeightQuantizer

BOUNDED = {"learned_step": LSQQuantizer, "learned_range": CompandingQuantizer}


def trained(kind: type[WeightQuantizer]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    attach(model, weight_quantizer=lambda layer: kind(4))
    return model


@pytest.mark.parametrize("name", BOUNDED)
def test_a_step_that_an_optimizer_moved_past_0_is_put_back(name: str) -> None:
    model = trained(BOUNDED[name])
    moved = getattr(model[0].weight_quantizer, name)
    with torch.no_grad():
        moved.copy_(-moved)
    model(torch.ones(2, 8))
    assert moved.min() > 0
    assert model[0].weight_quantizer(model[0].weight).abs().max() > 0


@pytest.mark.parametrize(
    "deploy", [lambda model: round_to_nearest(deepcopy(model)), lambda model: harness.deploy(model, 4, "rtn")]
)
def test_so_is_what_the_last_step_moved(deploy: object) -> None:
    model = trained(LSQQuantizer)
    with torch.no_grad():
        model[0].weight_quantizer.learned_step.fill_(-0.1)
    deployed = deploy(model)  # type: ignore[operator]
    assert deployed[0].weight.abs().max() > 0
    assert float(model[0].weight_quantizer.learned_step.detach()) == pytest.approx(-0.1), "the source stays as it is"


def test_the_harness_own_loop_has_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    layers.attach(model, weight_quantizer=lambda layer: LSQQuantizer(4))
    assert not model[0].weight_quantizer._forward_pre_hooks
    assert "put back at the next forward" in (harness.attach.__doc__ or "")
