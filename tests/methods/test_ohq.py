"""OHQ on whole networks: budgets, costs, where images come from, what is written down, and repeatability."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from allocation_common import refuse_evaluation_images, trained
from torch import nn

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.methods._budget import Budget
from harness.methods.base import Calibration, Context
from harness.methods.ohq import Ohq
from harness.quantization.layers import weight_layers
from harness.training.evaluator import Deployment

QUICK = {"images": 64, "draws": 1}


def deployed(point: Any, network: str = "mlp", **settings: Any) -> Deployment:
    session = trained(network)
    entry = {"name": "ohq", **QUICK, **settings}
    evaluator = replace(session.evaluator, settings={"ohq": entry})
    (found,) = evaluator.deployments(session.model, [("ohq", BitWidths.of(point))])
    return found


def chosen(found: Deployment) -> dict[str, BitWidths]:
    assert found.allocated is not None
    return found.allocated.mapping


def means(found: Deployment, network: str = "mlp") -> tuple[float, float]:
    """Mean bits of weights, and of the inputs of all layers but the first and the last."""
    session = trained(network)
    points = chosen(found)
    layers = weight_layers(session.model)
    budget = Budget(deepcopy(session.model), BitWidths(4), session.evaluator.context, session.evaluator.calibration)
    inner = list(layers)[1:-1]
    weights = np.average(
        [points[name].weights or 0 for name in layers], weights=[layers[n].weight.numel() for n in layers]
    )
    sizes = [budget.sizes[name].inputs for name in inner]
    return float(weights), float(np.average([points[name].activations or 0 for name in inner], weights=sizes))


@pytest.mark.parametrize("network", ["mlp", pytest.param("vit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", [3, "w4a4"])
def test_a_point_is_a_budget(network: str, point: Any) -> None:
    found, wanted = deployed(point, network), BitWidths.of(point)
    points = chosen(found)
    layers = weight_layers(trained(network).model)
    assert list(points) == [*layers, "*"]
    assert points["*"] == wanted
    assert len({each.weights for each in points.values()}) > 1, "not all layers alike"
    weights, inputs = means(found, network)
    assert wanted.weights is not None
    assert wanted.weights - 0.5 < weights <= wanted.weights
    assert found.notes["weight_bits"] == pytest.approx(weights)
    if wanted.activations is not None:
        outer = [points[name].activations for name in (next(iter(layers)), list(layers)[-1])]
        assert outer == [8, 8], "as activations.first_last says"
        assert wanted.activations - 0.7 < inputs <= wanted.activations
        assert found.notes["activation_bits"] == pytest.approx(inputs)
    else:
        assert all(each.activations is None for each in points.values())
        assert "activation_bits" not in found.notes
    own = weight_layers(found.model)
    for name, layer in own.items():
        assert len(layer.weight.unique()) < 2 ** (points[name].weights or 0)
    assert found.notes["cost_model"] == "bitops"
    assert found.notes["cost"] <= 1 + 1e-6


def test_it_diverges_less_than_the_uniform_allocation() -> None:
    """With few bits it need not: sensitivities are of single layers, and errors of several do not add up."""
    session = trained()
    images, model = session.evaluator.calibration.images(200), session.model
    divergence = session.task.divergence
    gains = []
    for point in (4, "w4a4"):
        uniform = session.evaluator.deployed(model, point)
        pair = [float(divergence(each(images), model(images))) for each in (deployed(point).model, uniform)]
        gains.append(np.log(pair[0] / pair[1]))
    assert np.mean(gains) < -0.2, gains


def test_the_cost_is_a_limit_or_counts() -> None:
    free, half = (deployed(4, cost_limit=limit).notes for limit in (None, 0.8))
    assert half["cost"] <= 0.8 + 1e-6
    assert free["weight_bits"] > half["weight_bits"]
    frugal = deployed(4, cost_limit=None, cost_weight=1.0).notes
    assert frugal["cost"] < 0.95 * free["cost"]
    assert deployed(4, cost="bytes").notes["cost_model"] == "bytes"
    with pytest.raises(UserError, match=r"ohq\.cost_limit: 0\.1: no choice of one option for each layer"):
        deployed(4, cost_limit=0.1)


def test_measured_costs_come_from_a_file_whose_digest_is_noted(tmp_path: Path) -> None:
    settings = {"cost": "measured", "table": str(tmp_path / "times.json")}
    first, second = (deployed("w4a4", **settings) for _ in range(2))
    assert first.allocated == second.allocated
    assert first.notes == second.notes
    assert len(first.notes["table_sha256"]) == 16
    (tmp_path / "times.json").write_text((tmp_path / "times.json").read_text() + "\n")
    assert deployed("w4a4", **settings).notes["table_sha256"] != first.notes["table_sha256"]
    for wrong in ({"cost": "measured"}, {"table": "x.json"}):
        with pytest.raises(ValueError, match="table names a file if, and only if, cost is measured"):
            Ohq.Config(**wrong)


def test_a_second_time_gives_the_same_and_another_seed_another_mask() -> None:
    session = trained()
    first, second = (deployed("w3a3") for _ in range(2))
    torch.rand(3)
    assert first.allocated == second.allocated
    assert first.notes == second.notes
    states = [each.model.state_dict() for each in (first, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    context = session.evaluator.context
    calibration = session.evaluator.calibration
    found = []
    for seed in (0, 0, 1):
        method = Ohq(Ohq.Config(**QUICK), replace(context, seed=seed))
        budget = Budget(deepcopy(session.model), BitWidths(3), context, calibration)
        found.append(method._sensitivities(budget)[0])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_calibration_is_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    trained()
    seen = refuse_evaluation_images(monkeypatch)
    assert deployed("w3a3").allocated
    assert seen


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    )
    return nn.Sequential(*model, nn.Linear(8 * 4 * 4, 5)).eval()


def no_images(shape: tuple[int, ...]) -> Calibration:
    """Whose images say nothing but their size."""
    return Calibration(lambda index: (torch.full((4, *shape), torch.nan), torch.zeros(4, dtype=torch.int64)))


def test_images_may_be_made_from_batch_norms() -> None:
    method = Ohq(Ohq.Config(**QUICK, images_from="batch_norm", synthetic_steps=3), Context())
    found = method.deploy(convolutions(), BitWidths(3), no_images((3, 8, 8)))
    assert found is not None
    assert list(found) == ["0", "3", "6", "*"]
    with pytest.raises(UserError, match=r"ohq\.images_from: 'batch_norm' needs 2-d batch norms"):
        method.check(nn.Sequential(nn.Linear(3, 3)))
    method.check(convolutions())


def test_points_that_are_not_budgets_are_left_alone() -> None:
    assert not Ohq.serves(BitWidths())
    assert not Ohq.serves(LayerPoints.of({"0": 2, "*": 4}))
    assert Ohq.serves(BitWidths(4))
    assert Ohq.serves(BitWidths(4, 4))
    method, model = Ohq(Ohq.Config(), Context()), convolutions()
    for point in (BitWidths(), LayerPoints.of({"0": 2, "*": 4})):
        assert method.deploy(model, point, no_images((3, 8, 8))) is None
    assert method.notes == {}
