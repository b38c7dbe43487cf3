"""Confidence-guided annealing: which weights are held, that they stay where they are, from which step; its stacks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cga_common import OPTIMIZERS, cga, near, prepared, session_of, steps
from test_dampening import run_config
from torch import Tensor, nn

from harness.methods.base import Step
from harness.methods.cga import ConfidenceGuidedAnnealing
from harness.quantization import LSQQuantizer, MaxAbsQuantizer, StatisticalQuantizer, WeightQuantizer
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.loop import train


def test_who_is_held_by_hand() -> None:
    """Mean 1, two bits: bins of width 1, thresholds at -1, 0 and 1; distances of 1/8 still count as near."""
    row = [-1.0, -0.875, -0.8125, -1.1875, -1.125, 0.0, 0.125, -0.1875, 1.125, 1.25, 2.0, 2.0, 0.5, 1.25, 1.25, 1.3125]
    weight = torch.tensor([row])
    assert weight.abs().mean() == 1
    model = nn.Sequential(nn.Linear(16, 1))
    attach(model, weight_quantizer=lambda layer: StatisticalQuantizer(2, per_channel=True))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    method = prepared(model, boundary=0.125)
    upstream = torch.randn(1, 16) + 5
    model[0].weight.grad, model[0].bias.grad = upstream.clone(), torch.ones(1)
    assert method.after_backward(Step(0, 1, model)) == 0
    trains = torch.tensor([1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]).bool()[None]
    assert torch.equal(model[0].weight.grad, upstream * trains)
    assert torch.equal(model[0].bias.grad, torch.ones(1))
    with torch.no_grad():
        model[0].weight.add_(7.0)
        model[0].bias.add_(7.0)
        bias = model[0].bias.clone()
    method.after_step(Step(0, 1, model))
    assert torch.equal(model[0].weight, torch.where(trains, weight + 7, weight))
    assert torch.equal(model[0].bias, bias)
    assert method.metrics() == {"cga/training_fraction": pytest.approx(6 / 16)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda settings: settings["optimizer"])
@pytest.mark.parametrize("below", ["statsq", "lsq", "ste"])
def test_held_weights_stay_to_the_last_bit_and_the_others_train(below: str, optimizer: dict[str, Any]) -> None:
    session = session_of([below], optimizer=optimizer, epochs=4, start=0.25, boundary=0.05)
    layers, first = attach(session.model), round(0.25 * session.total_steps)
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    near_now = {name: near(layer, 0.05) for name, layer in layers.items()}
    held_before = {name: torch.zeros_like(mask) for name, mask in near_now.items()}
    frees, others = [], []
    for number in steps(session):
        now = {name: p.detach().clone() for name, p in session.model.named_parameters()}
        for name, layer in layers.items():
            same = now[f"{name}.weight"] == before[f"{name}.weight"]
            if number <= first:
                assert float(same.float().mean()) < 0.7, "some pixels are always 0"
                continue
            held = ~near_now[name]
            assert bool(same[held].all())
            assert layer.weight.grad is not None
            assert not layer.weight.grad[held].any()
            others += [int((~held).sum()), int((~same[~held]).sum())]
            frees.append(bool((held_before[name] & ~held).any()))
            assert not torch.equal(now[f"{name}.bias"], before[f"{name}.bias"])
            held_before[name] = held
        if below == "lsq":
            assert all(not torch.equal(now[key], before[key]) for key in now if key.endswith("learned_step"))
        before, near_now = now, {name: near(layer, 0.05) for name, layer in layers.items()}
    assert len(frees) == 5 * (session.total_steps - first)
    assert sum(others[1::2]) > 0.1 * sum(others[::2]), "the others train on, but for units that are off"
    if below != "ste":  # there, the largest weight is held, and with it the grid
        assert any(frees), "nothing is sticky"


def test_momentum_of_held_weights_fades_rather_than_grows() -> None:
    session = session_of(["statsq"], optimizer=OPTIMIZERS[1], start=0.0, boundary=0.05)
    layer = attach(session.model)["layer3"]
    ever = torch.zeros_like(layer.weight, dtype=torch.bool)
    ever |= near(layer, 0.05)
    for _ in steps(session):
        last = ever.clone()
        ever |= near(layer, 0.05)
    average = session.optimizer.state[layer.weight]["exp_avg"]
    assert not average[~last].any(), "a held weight's gradient never reaches the optimizer"
    assert bool(average[last].any())


@pytest.mark.parametrize("below", [["statsq"], ["lsq"], ["ste"]], ids=str)
def test_before_it_starts_it_is_the_run_without_it(below: list[str]) -> None:
    states: list[list[dict[str, Tensor]]] = []
    for stack in (below, [*below, {"name": "cga", "start": 0.5, "boundary": 0.05}]):
        session = build(run_config(stack))
        states.append([])
        for _ in steps(session):
            states[-1].append({name: p.detach().clone() for name, p in session.model.named_parameters()})
    same = [all(torch.equal(one[name], other[name]) for name in one) for one, other in zip(*states, strict=True)]
    assert same == [True] * 3 + [False] * 3


def test_alone_it_trains_through_the_default_quantizer() -> None:
    states = []
    for stack in (["ste"], [{"name": "cga", "start": 0.99}]):
        session = build(run_config(stack, quantizer={"range": "mse"}))
        for number in steps(session):
            if number == 5:
                break
        states.append(session.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("index", "total", "holds"), [(4, 10, False), (5, 10, True), (9, 10, True), (5, 11, False)])
def test_the_first_step_at_which_it_holds(index: int, total: int, holds: bool) -> None:
    model = nn.Sequential(nn.Linear(30, 20))
    method = prepared(model, start=0.5)
    assert method.metrics() == {"cga/training_fraction": 1.0}
    model[0].weight.grad = torch.ones(20, 30)
    method.after_backward(Step(index, total, model))
    assert bool((model[0].weight.grad == 0).any()) is holds
    assert (method.metrics()["cga/training_fraction"] < 0.5) is holds
    assert method.selection_start == 0.5


def test_defaults_are_the_papers() -> None:
    method = cga(start=ConfidenceGuidedAnnealing.Config().start)
    assert method.config.boundary == 0.005
    assert method.selection_start == method.config.start == 300 / 330
    for epochs in (11, 330):  # so that the last eleventh begins with an epoch
        assert int(method.config.start * epochs) == epochs * 10 // 11


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", [StatisticalQuantizer, LSQQuantizer])
def test_about_a_hundredth_trains_at_the_default_boundary(
    kind: Callable[..., WeightQuantizer], per_channel: bool, bits: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 200))
    nn.init.normal_(model[0].weight)
    attach(model, weight_quantizer=lambda layer: kind(bits, per_channel).fit(layer.weight))
    method = prepared(model)
    method.after_backward(Step(0, 1, model))
    # At most 2 * 0.005 a bin, less what lies in the halves of outer bins and beyond, and sampling.
    assert 0.003 < method.metrics()["cga/training_fraction"] < 0.0112


def test_weights_that_never_move_come_and_go_as_the_range_moves() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    attach(model, weight_quantizer=lambda layer: StatisticalQuantizer(2))
    method, weight = prepared(model, boundary=0.01), model[0].weight
    trains = []
    for others in (1.0, 1.5, 2.0, 1.0):  # the mean, and with it the bins' width: 1, 1.25, 1.5
        with torch.no_grad():
            weight.copy_(torch.tensor([[1.0, 1.5, others, 1.5 if others == 1 else others * 2 - 0.5]]))
            weight[0, 3] = 4 * {1.0: 1.0, 1.5: 1.25, 2.0: 1.5}[others] - 2.5 - others
        weight.grad = torch.ones(1, 4)
        method.after_backward(Step(0, 1, model))
        method.after_step(Step(0, 1, model))
        trains.append(weight.grad[0, :2].bool().tolist())
    assert trains == [[True, False], [False, False], [False, True], [True, False]]


def test_the_fraction_survives_a_resume() -> None:
    session, other = (session_of(["lsq"], start=0.0, boundary=0.02) for _ in range(2))
    for _ in steps(session):
        pass
    fraction = session.methods[1].metrics()
    assert 0 < fraction["cga/training_fraction"] < 0.05
    other.methods[1].load_state_dict(session.methods[1].state_dict())
    assert other.methods[1].metrics() == fraction


@pytest.mark.parametrize("below", ["statsq", "lsq"])
def test_weights_come_to_rest_and_it_goes_on_learning(below: str) -> None:
    """At a constant rate, that is with nothing else that would calm them."""
    session, lines = session_of([below], epochs=12, optimizer={"learning_rate": 3e-3}, start=0.5), []
    train(session, lines.append)
    before, after = lines[5], lines[-1]
    # A learned step trains on, and takes thresholds past weights that are held.
    assert after["osc/flips_per_weight"] < (0.1 if below == "statsq" else 0.8) * before["osc/flips_per_weight"]
    if below == "statsq":
        assert after["osc/oscillating_fraction"] <= before["osc/oscillating_fraction"]
    assert [line["cga/training_fraction"] == 1 for line in lines] == [True] * 6 + [False] * 6
    assert all(line["cga/training_fraction"] < 0.03 for line in lines[6:])
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert session.progress.best_epoch > 6
    target = attach(session.evaluator.deployed(session.model, 3))
    for name, layer in attach(session.model).items():
        assert torch.equal(target[name].weight, layer.quantized_weight())
    assert MaxAbsQuantizer not in {type(layer.weight_quantizer) for layer in attach(session.model).values()}
