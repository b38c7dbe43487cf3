"""Copies of a network: those of `deepcopy`, of which nothing is shared with the source."""

from copy import deepcopy
from typing import Any

import torch
from quantizers_common import lsq_at
from torch import nn

from harness.quantization.layers import attach
from harness.quantization.slots import copy_of


def network() -> Any:
    """With a quantizer, a weight and an empty table that two modules share, a table that is not empty, and a hook."""
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    attach(model, weight_quantizer=lambda layer: lsq_at(0.5))
    model[2].weight = model[0].weight
    model[0].notes = model[2].notes = {}
    model[1].notes = {"a": [1]}
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def test_it_is_the_copy_that_deepcopy_makes() -> None:
    model, inputs = network(), torch.randn(5, 4)
    found, wanted = copy_of(model), deepcopy(model)
    assert torch.equal(found(inputs), wanted(inputs))
    assert [*found.state_dict()] == [*wanted.state_dict()]
    assert found[2].weight is found[0].weight
    assert found[2].notes is found[0].notes
    for copied, source in zip(found.modules(), model.modules(), strict=True):
        assert [*vars(copied)] == [*vars(source)]
        assert all(type(value) is type(vars(source)[name]) for name, value in vars(copied).items())


def test_nothing_is_shared_with_the_source() -> None:
    model, inputs = network(), torch.randn(5, 4)
    before, found = model(inputs), copy_of(model)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(1.0)
    found[0].register_forward_hook(lambda module, inputs, output: output + 1)
    found[0].register_buffer("more", torch.zeros(1), persistent=False)
    found[0].notes["b"] = found[1].notes["a"][0] = 2
    assert torch.equal(model(inputs), before)
    assert not hasattr(model[0], "more")
    assert (model[0].notes, model[1].notes) == ({}, {"a": [1]})
