"""Gradient l1 regularization: what it bounds, its own gradient, when it acts, and what training on it does."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Step
from harness.methods.gradient_l1 import GradientL1, gradient_norm
from harness.quantization.layers import GRADIENT_SLOTS, QuantMatMul, attach, weight_layers
from harness.quantization.slots import SlotTakenError
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import first_eligible_epoch, train
from harness.training.session import Session

EVERY_STEP = Context(total_steps=10, steps_per_epoch=10)


def network(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, generator=generator, dtype=torch.float64), torch.arange(32) % 3


def task_loss(model: nn.Module) -> Tensor:
    inputs, labels = batch()
    return functional.cross_entropy(model(inputs), labels)


def prepared(model: nn.Module, context: Context = EVERY_STEP, **settings: Any) -> GradientL1:
    method = GradientL1(GradientL1.Config(**settings), context)
    method.prepare(model, Calibration(lambda index: batch()))
    return method


def penalty(method: GradientL1, model: nn.Module, index: int = 0) -> Tensor | float:
    """As the loop calls the hooks."""
    step = Step(index, 10, model)
    method.on_step_start(step)
    step.task_loss = task_loss(model)
    return method.penalty(step)


def number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def session_of(methods: list[Any], epochs: int = 4, **settings: Any) -> Session:
    return build(
        complete(
            {
                "methods": [{"name": name, **(settings if name == "gradient_l1" else {})} for name in methods],
                "target_bit": 3,
                "model": {"name": "mlp5", "width": 24, "depth": 3},
                "data": {"name": "digits", "train_fraction": 0.2},
                "train": {"epochs": epochs, "batch_size": 32, "learning_rate": 3e-3, "precision": "fp32"},
                "deploy": {"bits": [2, 3], "scale": "keep_range"},
                "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
            }
        )
    )


def norm_on_training_data(session: Session) -> float:
    """||g||_1 of the weights over all training images, and the loss there."""
    dataset, model = session.dataset, session.model.eval()
    inputs, labels = dataset.normalized(dataset.train.images), dataset.train.labels
    weights = [layer.weight for layer in weight_layers(model).values()]
    return number(gradient_norm(functional.cross_entropy(model(inputs), labels), weights))


def test_it_is_how_far_the_worst_rounding_raises_the_loss() -> None:
    model, delta = network(), 1e-4
    norm = number(penalty(prepared(model, strength=1.0), model))
    before = float(task_loss(model).detach())
    gradients = torch.autograd.grad(task_loss(model), [layer.weight for layer in weight_layers(model).values()])

    def rise(directions: list[Tensor]) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for layer, direction in zip(weight_layers(moved).values(), directions, strict=True):
                layer.weight += delta * direction
        return float(task_loss(moved).detach()) - before

    worst = rise([gradient.sign() for gradient in gradients])
    assert worst == pytest.approx(delta * norm, rel=0.02)
    generator = torch.Generator().manual_seed(2)
    noise = [[torch.rand(g.shape, generator=generator, dtype=g.dtype) * 2 - 1 for g in gradients] for _ in range(20)]
    assert worst > 5 * sum(abs(rise(directions)) for directions in noise) / 20


def test_its_gradient_is_the_finite_difference() -> None:
    model = network()
    method = prepared(model, strength=0.7, activation_strength=0.3)
    value = penalty(method, model)
    assert isinstance(value, Tensor)
    value.backward()
    for parameter in model.parameters():
        if parameter.grad is None:  # the last bias, on which no gradient of a weight would depend alone
            continue
        for place in range(0, parameter.numel(), 5):
            flat = parameter.data.view(-1)
            old, sides = float(flat[place]), []
            for side in (1e-6, -1e-6):
                flat[place] = old + side
                sides.append(number(penalty(method, model)))
            flat[place] = old
            slope = float(parameter.grad.view(-1)[place])
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_strengths_multiply_the_norms_of_weights_and_of_hidden_inputs() -> None:
    model = network(nn.ReLU)
    inputs, labels = batch()
    hidden = [model[:2](inputs).detach().requires_grad_()]
    hidden.append(model[2:4](hidden[0]))
    loss = functional.cross_entropy(model[4](hidden[1]), labels)
    of_inputs = sum(float(g.abs().sum()) for g in torch.autograd.grad(loss, hidden))
    weights = [model[i].weight for i in (0, 2, 4)]
    of_weights = sum(float(g.abs().sum()) for g in torch.autograd.grad(task_loss(model), weights))
    found = number(penalty(prepared(model, strength=2.0, activation_strength=3.0), model))
    assert found == pytest.approx(2 * of_weights + 3 * of_inputs)
    assert number(penalty(prepared(model, strength=2.0), model)) == pytest.approx(2 * of_weights)


def test_zeros() -> None:
    model = network(nn.ReLU)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    value = penalty(prepared(model, strength=1.0, activation_strength=1.0), model)
    (task_loss(model) + value).backward()
    assert number(value) == 0
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


def test_shared_frozen_and_excluded_weights() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).double()
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    model[3].weight.requires_grad_(True)
    context = Context(total_steps=1, exclude=("3",))
    (gradient,) = torch.autograd.grad(task_loss(model), model[0].weight)
    assert number(penalty(prepared(model, context, strength=1.0), model)) == pytest.approx(float(gradient.abs().sum()))
    with pytest.raises(UserError, match="gradient_l1 finds no trainable"):
        prepared(nn.Sequential(model[2]))


def test_a_layer_that_the_loss_does_not_reach_counts_nothing() -> None:
    model, unreached = network(), nn.Linear(2, 2)
    both = nn.ModuleDict({"used": model, "unused": unreached})
    method = prepared(both, strength=1.0)
    assert number(penalty(method, model)) == number(penalty(prepared(model, strength=1.0), model)) > 0
    assert gradient_norm(task_loss(model), []) == 0.0
    assert gradient_norm(task_loss(model), [unreached.weight]) == 0.0


def test_it_acts_in_the_last_epochs_alone() -> None:
    model, context = network(), Context(total_steps=50, steps_per_epoch=10)
    method = prepared(model, context, strength=1.0, last_epochs=2)
    for index in (0, 29):
        assert penalty(method, model, index) == 0.0
        assert not method.needs_double_backward
    for index in (30, 49):
        assert number(penalty(method, model, index)) > 0
        assert method.needs_double_backward


@pytest.mark.parametrize(("epochs", "last", "first"), [(100, 15, 86), (5, 2, 4), (5, 15, 1), (49, 48, 2), (7, 6, 2)])
def test_no_epoch_before_it_acts_can_be_best(epochs: int, last: int, first: int) -> None:
    settings = session_of(["none"], epochs).config.train
    for strength, wanted in ((1.0, first), (0.0, 1)):
        config = GradientL1.Config(strength=strength, last_epochs=last)
        method = GradientL1(config, Context(total_steps=7 * epochs, steps_per_epoch=7))
        assert first_eligible_epoch(settings, [method]) == wanted


@pytest.mark.parametrize("order", [["satnl", "gradient_l1"], ["gradient_l1", "satnl"]])
def test_its_weights_are_those_that_get_quantized(order: list[str]) -> None:
    from harness.methods.satnl import SaturatingNonlinearity

    model, plain = network(), network()
    calibration = Calibration(lambda index: batch())
    method = GradientL1(GradientL1.Config(strength=1.0), EVERY_STEP)
    other = SaturatingNonlinearity(SaturatingNonlinearity.Config(kappa=0.3, start="weights"), EVERY_STEP)
    for name in order:
        (method if name == "gradient_l1" else other).prepare(model, calibration)
    layers = attach(model)
    with torch.no_grad():
        for name, layer in weight_layers(plain).items():
            layer.weight.copy_(layers[name].weight_transform(layers[name].weight))
    assert number(penalty(method, model)) == pytest.approx(number(penalty(prepared(plain, strength=1.0), plain)))


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_passes_that_do_not_train_are_not_kept(mode: str) -> None:
    model = network()
    attach(model, weight_transform=lambda layer: nn.Tanh())
    method = prepared(model, strength=1.0, activation_strength=1.0)
    first = number(penalty(method, model))
    with torch.set_grad_enabled(mode == "eval"):
        copied = copy.deepcopy(model).train(mode != "eval")
        step = Step(1, 10, model)
        method.on_step_start(step)
        copied(batch()[0])
        step.task_loss = task_loss(model)
        assert len(method._inputs) == 2 * (mode == "eval")
        assert len(method._effective) == 3 * (mode == "eval")
    assert first > 0
    method.after_step(step)
    assert not method._inputs + method._effective, "a step's graph must not outlive it"


@pytest.mark.parametrize("settings", [{}, {"activation_strength": 0.01}])
def test_training_with_it_lowers_the_norm(settings: dict[str, Any]) -> None:
    norms = []
    for strength in (0.0, 0.05):
        session = session_of(["gradient_l1"], 8, strength=strength, **(settings if strength else {}))
        train(session, lambda metrics: None)
        norms.append(norm_on_training_data(session))
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize("methods", [["ste"], ["lsq"], ["satnl"], ["kure"], ["oscillation"]])
def test_stacks_train(methods: list[str]) -> None:
    for stack in (["gradient_l1", *methods], [*methods, "gradient_l1"]):
        session, lines = session_of(stack, 3, strength=0.01), []
        train(session, lines.append)
        assert all(math.isfinite(line["train/loss"]) for line in lines)
        assert lines[-1]["train/loss"] < lines[0]["train/loss"]
        assert lines[0]["train/penalty"] != 0


def test_it_needs_no_target_bit() -> None:
    raw = {
        "methods": ["gradient_l1"],
        "watch_bit": 3,
        "model": {"name": "mlp5"},
        "data": {"name": "digits"},
        "train": {"epochs": 1},
        "deploy": {"bits": [3], "scale": "recalibrate"},
    }
    assert complete(raw).target_bit is None


@pytest.mark.parametrize("slot", [*GRADIENT_SLOTS, "grad_other_quantizer"])
def test_gradients_that_a_slot_changes_are_refused_before_training(slot: str) -> None:
    model = network()
    if slot in GRADIENT_SLOTS:
        attach(model)["2"].fill(slot, nn.Tanh())
    else:
        model.add_module("2", QuantMatMul())
        model.get_submodule("2").fill(slot, nn.Tanh())
    with pytest.raises(SlotTakenError, match=rf"'gradient_l1' differentiates .* Tanh in slot {slot} of layer '2' does"):
        prepared(model).prepared(model)
    prepared(model, strength=0.0).prepared(model)  # which differentiates none
