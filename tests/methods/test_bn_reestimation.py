"""Batch norm re-estimation: statistics by hand on the rounded network, what it leaves alone, what it is good for."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from test_dampening import run_config
from torch import Tensor, nn
from torch.nn import functional

from harness.core.bits import Bits
from harness.methods.base import Calibration, Context
from harness.methods.bn_reestimation import BatchNormReestimation, batch_norms
from harness.quantization import LSQQuantizer
from harness.quantization.deploy import round_rest, round_to_nearest
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.loop import train

SIZES = (16, 16, 5, 16)  # what an epoch's batches may look like: the smaller one is left out


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.Linear(6, 3),
    )
    for _ in range(3):
        model(3 * torch.randn(20, 2, 4, 4) + 1)  # running statistics of other data
    return model.eval()


def draw(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    count = SIZES[index % len(SIZES)]
    return torch.randn(count, 2, 4, 4, generator=generator), torch.zeros(count, dtype=torch.int64)


def by_hand(model: nn.Sequential, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance, averaged over batches, of what enters each batch norm."""
    found: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], 6: []}
    for x in batches:
        for place, layer in enumerate(model):
            if place in found:
                columns = x.transpose(0, 1).flatten(1)
                mean, centred = columns.mean(1), columns - columns.mean(1, keepdim=True)
                found[place].append((mean, centred.square().sum(1) / (columns.shape[1] - 1)))
                x = functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True)  # type: ignore[arg-type]
            else:
                x = layer(x)
    return [tuple(torch.stack(part).mean(0) for part in zip(*pairs)) for pairs in found.values()]  # type: ignore[misc]


def method(batches: int = 4, scale: Any = "recalibrate") -> BatchNormReestimation:
    return BatchNormReestimation(BatchNormReestimation.Config(batches=batches), Context(scale=scale))


@pytest.mark.parametrize("own", [False, True], ids=["float", "lsq"])
@pytest.mark.parametrize("bits", [2, 4, "float"])
def test_statistics_are_those_of_the_rounded_network(bits: Bits, own: bool) -> None:
    model = network()
    if own:
        attach(model, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    copy = deepcopy(model)
    method(scale="keep_range").deploy(copy, bits, Calibration(draw))
    rounded = round_to_nearest(deepcopy(model), bits, "keep_range")
    with torch.no_grad():
        expected = by_hand(rounded, [draw(index)[0] for index in (0, 1, 3)])  # type: ignore[arg-type]
    for norm, (mean, variance) in zip(batch_norms(copy), expected, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, atol=1e-6, rtol=1e-5)
    again = round_rest(copy, bits, "keep_range")
    for name, parameter in rounded.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter), name
    assert [norm.momentum for norm in batch_norms(copy)] == [0.3, 0.1]
    assert not any(layer.training for layer in copy)


def test_the_source_is_left_alone_and_twice_is_once() -> None:
    model = network()
    before = deepcopy(model.state_dict())
    once = deepcopy(model)
    method().deploy(once, 2, Calibration(draw))
    twice = deepcopy(once)
    method().deploy(twice, 2, Calibration(draw))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(torch.equal(twice.state_dict()[key], value) for key, value in once.state_dict().items())
    assert not torch.equal(once[1].running_mean, model[1].running_mean)  # type: ignore[arg-type]


def test_without_batch_norm_nothing_is_read() -> None:
    def refuse(index: int) -> Any:
        raise AssertionError("no data is needed")

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False))
    before = deepcopy(model.state_dict())
    method().deploy(model.eval(), 2, Calibration(refuse))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_timms_batch_norm_with_activation_counts() -> None:
    layers = pytest.importorskip("timm.layers")
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    other = nn.Sequential(deepcopy(plain[0]), layers.BatchNormAct2d(4)).eval()
    for model in (plain, other):
        method().deploy(model, 3, Calibration(draw))
    torch.testing.assert_close(other[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(other[1].running_var, plain[1].running_var)


RESNET = {"name": "resnet18", "width": 8}
TRAIN = {"epochs": 3, "batch_size": 100, "learning_rate": 3e-3, "precision": "fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("below", ["none", "ste"])
def test_accuracy_at_low_bits_does_not_fall(below: str) -> None:
    deploy = {"bits": [3, 4], "scale": "recalibrate", "methods": ["rtn", "bn_reestimation"]}
    data = {"name": "digits"}
    session = build(run_config([below], RESNET, train=TRAIN, deploy=deploy, data=data))
    train(session, lambda metrics: None)
    accuracy = {
        (row["deploy"], row["bits"]): row["accuracy"] for row in session.evaluator.rows(session.model, "", "val")
    }
    gains = [accuracy["bn_reestimation", bits] - accuracy["rtn", bits] for bits in (3, 4, "float")]
    assert min(gains) >= 0, accuracy
    assert gains[0] > 0.02, accuracy


@pytest.mark.parametrize("first", ["oscillation", "lsq"])
def test_stacked_it_changes_what_is_deployed_and_nothing_else(first: str) -> None:
    short = {**TRAIN, "epochs": 1, "batch_size": 40}
    deploy = {"bits": [3], "scale": "recalibrate"}
    sessions = {}
    for methods in ([first], [first, {"name": "bn_reestimation", "batches": 3}]):
        session = build(run_config(methods, {"name": "resnet18", "width": 2}, train=short, deploy=deploy))
        train(session, lambda metrics: None)
        sessions[len(methods)] = session
    trained = [session.model.state_dict() for session in sessions.values()]
    assert all(torch.equal(trained[1][key], value) for key, value in trained[0].items())
    plain, stacked = (session.evaluator.deployed(session.model, 3) for session in sessions.values())
    for name, parameter in plain.named_parameters():
        assert torch.equal(dict(stacked.named_parameters())[name], parameter), name
    assert not torch.equal(plain.bn1.running_var, stacked.bn1.running_var)  # type: ignore[union-attr, arg-type]
