"""Freezing: averages and thresholds by hand, where weights end up, and what a frozen weight is from then on."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from quantizers_common import lsq_at
from test_dampening import Stepless, run_config
from torch import Tensor, nn
from toy_model import NO_DATA, Toy, flip_rate

from harness import OscillationTracker
from harness.core.errors import UserError
from harness.methods.base import Context, Step
from harness.methods.freezing import Freezing
from harness.quantization import FrozenQuantizer, LSQQuantizer, MaxAbsQuantizer, WeightQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach
from harness.quantization.slots import SlotTakenError
from harness.training.build import build
from harness.training.loop import train


def freezing(bits: int = 4, **settings: Any) -> Freezing:
    return Freezing(Freezing.Config(**settings), Context(target_bit=bits))


def half_frozen(quantizer: WeightQuantizer, bits: int = 3, channel: bool = False) -> tuple[nn.Sequential, Any, Tensor]:
    """A network of one layer, half of whose weights are frozen away from where they are; its quantizer; the mask."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8))
    attach(model, weight_quantizer=lambda layer: quantizer.fit(layer.weight))
    freezing(bits).prepare(model, NO_DATA)
    own: Any = model[0].weight_quantizer
    mask = torch.rand(8, 10) < 0.5
    own.freeze(mask, (own.codes(model[0].weight).float() + 1.4).clamp(*own.levels))
    return model, own, mask


@pytest.mark.slow
def test_a_weight_that_oscillates_freezes_where_it_is_most_of_the_time() -> None:
    distances = [0.1, 0.2, 0.3, 0.4, -0.4, -0.2]
    targets = [3 * (i % 2) + d for i, d in enumerate(distances)]
    for start in (0.0, 5.0):  # the averages start far from where they end
        method, toy = freezing(threshold=0.04, momentum=0.02), Toy(targets, start)
        codes = toy.train([method], 2000, 0.02)
        assert torch.equal(codes[-1], torch.tensor(targets).round())
        assert bool(toy.layer.weight_quantizer.frozen.all())  # type: ignore[union-attr, operator]
        assert not flip_rate(codes[-500:]).any()
        assert bool((flip_rate(codes[300:500]) > 0.1).all()), "nothing freezes in the first quarter"


@pytest.mark.parametrize("late", [0, 40])
def test_averages_frequencies_and_freezing_by_hand(late: int) -> None:
    """A random walk of codes, followed weight by weight with plain numbers; `late`: when freezing sets in."""
    torch.manual_seed(1)
    steps, momentum, model = 120, 0.05, nn.Sequential(nn.Linear(6, 5, bias=False))
    attach(model, weight_quantizer=lambda layer: lsq_at(1.0))
    weight, quantizer = model[0].weight, lsq_at(1.0)
    method = freezing(3, threshold=0.06, threshold_start=0.2, start=late / steps, momentum=momentum)
    method.prepare(model, NO_DATA)
    codes = quantizer.codes(weight).float()
    average, frequency, direction = codes.clone(), torch.zeros(5, 6), torch.zeros(5, 6)
    frozen, kept = torch.zeros(5, 6, dtype=torch.bool), torch.zeros(5, 6)
    for index in range(steps):
        with torch.no_grad():
            weight.copy_(0.6 * torch.randn(5, 6) + torch.tensor([0.0, 0.3, 0.45, 1.2, 2.0, 7.0]))
        method.after_step(Step(index, steps, model))
        new = torch.where(frozen, kept, quantizer.codes(weight).float())
        change = (new - codes).sign()
        reversal = (change * direction < 0).float()
        direction, codes = torch.where(change != 0, change, direction), new
        average = momentum * codes + (1 - momentum) * average
        frequency = momentum * reversal + (1 - momentum) * frequency
        if index >= late:
            limit = 0.06 + 0.5 * 0.14 * (1 + math.cos(math.pi * (index - late) / (steps - late)))
            freeze = (frequency > limit) & ~frozen
            kept, frozen = torch.where(freeze, average.round(), kept), frozen | freeze
        own: Any = model[0].weight_quantizer
        torch.testing.assert_close(method._averages["0"], average, atol=1e-5, rtol=0)
        assert torch.equal(own.frozen, frozen), index
        assert torch.equal(own.codes(weight).float(), torch.where(frozen, kept, codes).int().float())
    assert 0.2 < float(frozen.float().mean()) < 1
    assert method.metrics() == {"freezing/frozen_fraction": pytest.approx(float(frozen.float().mean()))}


def test_the_threshold_falls_by_a_cosine_after_a_quarter() -> None:
    method = freezing()
    assert [method.threshold_at(index, 100) for index in (0, 24)] == [None, None]
    assert method.threshold_at(25, 100) == pytest.approx(0.1)
    for index in (26, 50, 99, 100):
        expected = 0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * (index - 25) / 75))
        assert method.threshold_at(index, 100) == pytest.approx(expected)
    assert method.selection_start == 0.25


def test_a_frozen_weight_is_its_integer_times_the_present_step() -> None:
    model, own, mask = half_frozen(LSQQuantizer(3))
    layer, inner = model[0], own.weight_quantizer
    before = own.code.clone()
    output = own(layer.weight)
    assert torch.equal(output[mask], (inner.learned_step * before)[mask])
    assert torch.equal(output[~mask], inner(layer.weight)[~mask])
    upstream = torch.randn(8, 10)
    by_weight, by_step = torch.autograd.grad(output, (layer.weight, inner.learned_step), upstream)
    assert not by_weight[mask].any()
    scale = 1 / math.sqrt(layer.weight.numel() * 3)
    through = torch.autograd.grad(inner(layer.weight), inner.learned_step, upstream * ~mask)[0]
    torch.testing.assert_close(by_step, through + scale * (upstream * before)[mask].sum())
    with torch.no_grad():
        layer.weight[mask] = 1e3 * torch.randn(int(mask.sum()))  # the latent weight no longer matters
        assert torch.equal(own(layer.weight), output)
        inner.learned_step.mul_(2.0)
        assert torch.equal(own(layer.weight)[mask], 2 * output[mask])
    own.freeze(torch.ones_like(mask), torch.zeros(8, 10))
    assert torch.equal(own.code[mask], before[mask]), "what is frozen stays as it is"


@pytest.mark.parametrize("kind", ["lsq", "lsq channel", "max", "max channel"])
def test_deployment(kind: str) -> None:
    channel = kind.endswith("channel")
    model, own, mask = half_frozen(
        LSQQuantizer(3, channel) if kind.startswith("lsq") else MaxAbsQuantizer(3, channel), channel=channel
    )
    latent = model[0].weight.detach()
    step = own.step(latent).detach()
    values = torch.where(mask, step * own.code, latent)

    def deployed(bits: Any, scale: Any) -> Tensor:
        copy = round_to_nearest(deepcopy(model), bits, scale)
        return copy[0].weight.detach()  # type: ignore[index, union-attr]

    for scale in ("keep_step", "keep_range", "recalibrate"):
        assert torch.equal(deployed(3, scale), own(latent).detach()), "frozen integers at the target bit"
        assert torch.equal(deployed("float", scale), latent)
    assert torch.equal(deployed(4, "recalibrate"), MaxAbsQuantizer(4)(latent).detach())
    for bits in (2, 4, 8):
        for scale in ("keep_step", "keep_range"):
            expected = own.weight_quantizer.at_bits(bits, scale)(values).detach()
            assert torch.equal(deployed(bits, scale), expected)
    if kind.startswith("lsq"):
        assert torch.equal(deployed(8, "keep_step")[mask], (step * own.code)[mask]), "the same integers"
    assert torch.equal(model[0].weight, latent)
    assert isinstance(model[0].weight_quantizer, FrozenQuantizer)


@pytest.mark.parametrize("fused", [True, False])
def test_trackers_see_the_frozen_codes(fused: bool) -> None:
    model, _, mask = half_frozen(LSQQuantizer(3))
    tracker = OscillationTracker(model, 3, fused=fused)
    for sign in (1, -1, 1, -1):
        with torch.no_grad():
            model[0].weight.copy_(sign * torch.ones(8, 10))
        tracker.update()
    frequencies = tracker.frequencies()["0"]
    assert not frequencies[mask].any()
    assert bool(frequencies[~mask].all())


@pytest.mark.parametrize("model", [{"name": "mlp5", "width": 16}, {"name": "resnet18", "width": 2}], ids=str)
@pytest.mark.parametrize("below", [["lsq"], ["ste"], ["ste", {"name": "dampening", "strength": 1.0}], []], ids=str)
def test_stacks(below: list[Any], model: dict[str, Any]) -> None:
    tiny = Freezing.tiny_config().model_dump()
    lines: list[dict[str, Any]] = []
    session = build(run_config([*below, tiny], model))
    train(session, lines.append)
    assert lines[-1]["freezing/frozen_fraction"] > 0
    layers = attach(session.model)
    for name, layer in layers.items():
        own: Any = layer.weight_quantizer
        target = attach(session.evaluator.deployed(session.model, 3))[name].weight
        assert torch.equal(target[own.frozen], (own.step(layer.weight) * own.code)[own.frozen])
        assert torch.equal(target, own(layer.weight))
    assert session.progress.best_epoch >= 1
    kept = {key for key in session.progress.best_state if key.endswith(("weight_quantizer.frozen", "quantizer.code"))}
    assert len(kept) == 2 * len(layers), "best.safetensors knows what is frozen"


def test_until_something_freezes_it_is_the_run_without_it() -> None:
    states = []
    for methods in (["lsq"], ["lsq", {"name": "freezing", "threshold": 1.0, "threshold_start": 1.0}]):
        session = build(run_config(methods))
        train(session, lambda metrics: None)
        states.append(dict(session.model.named_parameters()))
    for name, parameter in states[0].items():
        wrapped = name.replace("weight_quantizer.", "weight_quantizer.weight_quantizer.")
        assert torch.equal(states[1][wrapped], parameter), name


def test_the_step_keeps_the_options_that_its_method_gives_it() -> None:
    stack = [{"name": "lsq", "step_learning_rate": 0.5}, "freezing"]
    session = build(run_config(stack, train={"epochs": 1, "batch_size": 40, "weight_decay": 0.1}))
    steps = [p for name, p in session.model.named_parameters() if name.endswith("learned_step")]
    (group,) = [g for g in session.optimizer.param_groups if any(p is steps[0] for p in g["params"])]
    assert len(group["params"]) == len(steps)
    assert (group["lr"], group["weight_decay"]) == (0.5e-3, 0.0)


@pytest.mark.slow
def test_fewer_weights_of_a_network_oscillate_with_dampening_and_with_freezing() -> None:
    settings = {"epochs": 15, "batch_size": 40, "learning_rate": 3e-3, "precision": "fp32"}
    more = ["dampening", {"name": "freezing", "threshold": 0.02}]
    left = []
    for stack in (["ste"], ["ste", more[0]], ["ste", more[1]], ["ste", *more]):
        lines: list[dict[str, Any]] = []
        train(
            build(run_config(stack, {"name": "mlp5", "width": 32}, train=settings, data={"name": "digits"})),
            lines.append,
        )
        left.append(lines[-1]["osc/oscillating_fraction"])
    plain, dampened, frozen, both = left
    assert dampened < 0.8 * plain, left
    assert frozen < 0.4 * plain, left
    assert both < frozen, left


class Shifted(LSQQuantizer):
    """Values between the multiples of its step."""

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight) + 0.5 * self.step(weight)


@pytest.mark.parametrize("present", [nn.Tanh(), Stepless(3), Shifted(3)])
def test_what_gives_no_codes_times_a_step_is_refused(present: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    attach(model, weight_quantizer=lambda layer: present)
    with pytest.raises(SlotTakenError, match=rf"'freezing' .* {type(present).__name__} of layer '0' .*whole steps"):
        freezing().prepare(model, NO_DATA)


def test_before_a_quantizer_it_clashes() -> None:
    with pytest.raises(UserError, match=r"FrozenQuantizer, so LSQQuantizer cannot have it: two methods .* clash"):
        build(run_config(["freezing", "lsq"]))
