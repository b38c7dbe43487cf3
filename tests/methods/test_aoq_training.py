"""AOQ: learning from a teacher, what whole trainings come to, what is deployed, and what it stacks with."""

import itertools
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from aoq_common import images, network, prepared, session_of
from torch import nn
from torch.nn import functional
from toy_model import NO_DATA

from harness.core.errors import Stopped
from harness.methods import build_stack
from harness.methods.aoq import AllowingOscillation, float_copy
from harness.methods.base import Context, Method, Step
from harness.quantization import DecoupledQuantizer
from harness.quantization.layers import attach
from harness.quantization.slots import SlotTakenError, Unfilled
from harness.training import checkpoint
from harness.training.loop import train

# The teacher


def step_of(model: nn.Module, index: int = 0) -> Step:
    """A step of ten whose forward pass is done."""
    inputs, labels = 5 * images(), torch.arange(8)
    logits = model(inputs)
    return Step(index, 10, model, inputs, labels, logits, functional.cross_entropy(logits, labels, label_smoothing=0.1))


def test_with_a_teacher_the_loss_is_the_divergence_alone() -> None:
    model = network()
    plain = deepcopy(model)
    method = prepared(model, teacher="initial", pull=0.0)
    now = step_of(model)
    assert now.outputs is not None
    assert now.task_loss is not None
    target = plain(5 * images()).detach().double().log_softmax(1)
    own = now.outputs.detach().double().log_softmax(1)
    by_hand = sum(float(t.exp() * (t - o)) for t, o in zip(target.flatten(), own.flatten(), strict=True)) / 8
    found = method.penalty(now) + now.task_loss
    assert by_hand > 0.01
    assert float(found.detach()) == pytest.approx(by_hand, rel=1e-4)  # the task loss is added and taken away in fp32
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(found, list(parameters.values()), retain_graph=True)
    soft = -(target.exp().float() * now.outputs.log_softmax(1)).sum(1).mean()  # the same but for a constant
    expected = torch.autograd.grad(soft, list(parameters.values()))
    for name, gradient, other in zip(parameters, gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6, msg=name)
    both = prepared(network(), teacher="initial", pull=0.5)
    late = step_of(model, 9)
    both._layers = method._layers
    without, with_pull = method.penalty(late), both.penalty(late)
    distance = 0.5 * method._distance()
    torch.testing.assert_close(with_pull, without + distance)


def test_a_network_that_computes_as_its_teacher_has_no_divergence() -> None:
    model = network()
    teacher, method = float_copy(model), prepared(network(), teacher="initial")
    assert float(method._distillation(teacher, images(), model(images())).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model[3].bias.add_(torch.arange(10.0))
    assert float(method._distillation(teacher, images(), model(images())).detach()) > 0.1


def test_the_teacher_is_float_frozen_and_no_part_of_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10)
    )
    attach(model, weight_transform=lambda layer: nn.Tanh(), input_quantizer=lambda layer: nn.Threshold(0.5, 0.0))
    parts, keys = len(list(model.modules())), list(model.state_dict())
    model.train()
    method = prepared(model, teacher="initial")
    assert len(list(model.modules())) == parts, "two identities made way for two quantizers"
    added = {key.rpartition(".")[2] for key in set(model.state_dict()) - set(keys)}
    assert added == {"threshold_step", "level_step", "shrink"}
    assert method.state_dict() == {}
    teacher: Any = method._teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(part.training for part in teacher.modules() if not isinstance(part, Unfilled))
    assert model.training
    assert model[0].training
    for layer in attach(teacher).values():
        assert all(isinstance(getattr(layer, slot), Unfilled) for slot in layer.SLOTS)
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert torch.equal(weights["5.weight"], model[5].weight.tanh())
    now = step_of(model)
    before = torch.get_rng_state()
    penalty = method.penalty(now)
    assert torch.equal(torch.get_rng_state(), before), "dropout must not draw in the teacher"
    (penalty + now.task_loss).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, weights[name]), "neither weights nor running statistics move"


def test_a_teacher_takes_no_part_of_what_the_network_draws() -> None:
    vit = {"name": "vit_tiny", "width": 8, "depth": 1, "heads": 2, "drop_path": 0.4}
    states = []
    for teacher in ("none", "initial"):
        session = session_of([{"name": "aoq", "teacher": teacher}], 1, model=vit)
        train(session, lambda metrics: None)
        states.append(torch.get_rng_state())
    assert torch.equal(*states), "as many draws of stochastic depth"


def test_learning_from_a_trained_network(tmp_path: Path) -> None:
    """From a float checkpoint, without a look at the labels, the quantized network comes to compute as it did."""
    floating = session_of(["none"], 40)
    train(floating, lambda metrics: None)
    checkpoint.save_weights(tmp_path / "float.safetensors", floating.model.state_dict())
    start = {"name": "mlp5", "width": 16, "depth": 3, "init": f"checkpoint:{tmp_path / 'float.safetensors'}"}
    lines: list[dict[str, Any]] = []
    session = session_of([{"name": "aoq", "teacher": "initial"}], 40, model=start)
    session.dataset.train.labels.fill_(0)
    method: Any = session.methods[0]
    for one, other in zip(method._teacher.parameters(), floating.model.parameters(), strict=True):
        assert torch.equal(one, other)
    train(session, lines.append)
    divergences = [line["train/loss"] + line["train/penalty"] for line in lines]
    assert 0 <= divergences[-1] < 0.25 * max(divergences[:8])
    assert lines[-1]["val/acc_w3"] > 0.7


@pytest.mark.slow
def test_resumed_equals_uninterrupted_across_stages_with_a_teacher(tmp_path: Path) -> None:
    """Three steps of stage 1, six of 2, six of 3, interrupted within and between them."""
    vit = {"name": "vit_tiny", "width": 8, "depth": 1, "heads": 2, "drop_path": 0.4}
    settings = {"name": "aoq", "teacher": "initial", "updates": 3, "pull": 0.5}
    states, lines = {}, {}
    for name, parts in (("whole", (99,)), ("parts", (2, 1, 4, 2, 99))):
        lines[name] = []
        for allowed in parts:
            session = session_of([settings], model=vit)
            checkpoint.restore(tmp_path / f"{name}.pt", session)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(session, lines[name].append, lambda left=left: next(left))  # type: ignore[misc]
            checkpoint.save(tmp_path / f"{name}.pt", session)
        states[name] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    assert lines["parts"] == lines["whole"]
    assert len(lines["whole"]) == 5
    whole, parts = states["whole"]["model"], states["parts"]["model"]
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    assert not any("teacher" in key for key in whole)
    assert torch.equal(states["whole"]["rng"]["cpu"], states["parts"]["rng"]["cpu"])


# Whole trainings


@pytest.mark.slow
def test_weights_oscillate_early_and_rest_late() -> None:
    """Digits at 2 bits, 20 epochs: 4 of stage 1, 8 of 2, 8 of 3. Measured, oscillations per weight and epoch:

    .03 .06 .08 .04 in stage 1 (lsq: .01 to .02; with a = 1 throughout: .02), .001 at the end.
    """
    rates = {}
    for name, settings in {"lsq": {}, "aoq": {}, "wide": {"name": "aoq", "shrink_to": 1.0}}.items():
        lines: list[dict[str, Any]] = []
        session = session_of(
            [{"name": name, **settings}],
            20,
            2,
            model={"name": "mlp5", "width": 32, "depth": 3},
            data={"name": "digits", "train_fraction": 0.5},
            train={"batch_size": 64, "schedule": "cosine"},
        )
        train(session, lines.append)
        rates[name] = [line["osc/oscillations_per_weight"] for line in lines]
    early = {name: sum(values[1:4]) / 3 for name, values in rates.items()}
    assert early["aoq"] > 2 * early["lsq"], early
    assert early["aoq"] > 2 * early["wide"], early
    middle, late = sum(rates["aoq"][4:12]) / 8, sum(rates["aoq"][-4:]) / 4
    assert late < 0.15 * middle < 0.15 * early["aoq"], rates["aoq"]


def recovered(method: Method, seed: int) -> float:
    """The share of integer weights, -2 to 1, of a linear model y = w* x that 2-bit training finds from its data."""
    generator = torch.Generator().manual_seed(seed)
    count, steps = 24, 400
    target = torch.randint(-2, 2, (1, count), generator=generator).float() + 0.5
    inputs = torch.randn(200, count, generator=generator)
    model = nn.Sequential(nn.Linear(count, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(1, count, generator=generator))
    method.prepare(model, NO_DATA)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for index in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - index / steps)
        now = Step(index, steps, model)
        method.on_step_start(now)
        loss = (model(inputs) - inputs @ target.T).square().mean()
        optimizer.zero_grad()
        (loss + method.penalty(now)).backward()
        method.after_backward(now)
        optimizer.step()
        method.after_step(now)
    quantizer: Any = model[0].weight_quantizer
    return float((quantizer.codes(model[0].weight) + 0.5 == target).float().mean())


def test_a_linear_model_finds_its_integers() -> None:
    found = [recovered(AllowingOscillation(AllowingOscillation.Config(), Context(target_bit=2)), s) for s in range(4)]
    assert sum(found) / len(found) > 0.9, found


# Stacks and deployment


def test_it_trains_with_a_regularizer_and_is_watched_and_deployed_by_its_own_grid() -> None:
    lines: list[dict[str, Any]] = []
    session = session_of(["aoq", "kure"], 6)
    train(session, lines.append)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert {"aoq/shrink", "kure/kurtosis"} <= set(lines[-1])
    target = attach(session.evaluator.deployed(session.model, 3))
    finer = attach(session.evaluator.deployed(session.model, 4))
    for name, layer in attach(session.model).items():
        quantizer = layer.weight_quantizer
        assert isinstance(quantizer, DecoupledQuantizer)
        assert float(quantizer.shrink) == pytest.approx(0.3)
        assert torch.equal(target[name].weight, quantizer(layer.weight))
        assert torch.equal(finer[name].weight, quantizer.at_bits(4, "keep_range")(layer.weight))
        assert torch.equal(session.tracker.state_dict()[name]["code"], quantizer.codes(layer.weight))
        assert f"{name}.weight_quantizer.shrink" in session.progress.best_state, "best.safetensors knows the grid"


def prepare_all(methods: list[str]) -> None:
    model, stack = network(), build_stack([{"name": name} for name in methods], Context(target_bit=3))
    for method in stack:
        method.prepare(model, NO_DATA)
    for method in stack:
        method.prepared(model)


@pytest.mark.parametrize("methods", [["aoq", "lsq"], ["ste", "aoq"], ["aoq", "aoq"]])
def test_two_quantizers_clash(methods: list[str]) -> None:
    with pytest.raises(SlotTakenError, match="slot weight_quantizer already holds"):
        prepare_all(methods)


@pytest.mark.parametrize("methods", [["aoq", "freezing"], ["aoq", "dampening"], ["dampening", "aoq"]])
def test_what_needs_integers_times_a_step_is_refused(methods: list[str]) -> None:
    with pytest.raises(SlotTakenError, match=r"DecoupledQuantizer of layer .*whole steps"):
        prepare_all(methods)
