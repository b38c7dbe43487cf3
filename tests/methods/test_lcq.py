"""LCQ as a method: what it fills, learns and projects, what it is deployed with, and its stacks."""

from typing import Any

import pytest
import torch
from test_dampening import run_config
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.core.config_base import QuantizerConfig
from harness.methods.base import Context, Step
from harness.methods.lcq import LearnedCompanding
from harness.quantization import CompandingQuantizer, MaxAbsQuantizer, WeightQuantizer
from harness.quantization.layers import attach
from harness.quantization.slots import SlotTakenError
from harness.training.build import build
from harness.training.loop import train
from harness.training.session import Session


def lcq(bits: int = 3, channel: bool = False, **settings: Any) -> LearnedCompanding:
    context = Context(target_bit=bits, quantizer=QuantizerConfig(granularity="channel" if channel else "tensor"))
    return LearnedCompanding(LearnedCompanding.Config(**settings), context)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))


def quantizers(model: nn.Module) -> dict[str, CompandingQuantizer]:
    found = {name: layer.weight_quantizer for name, layer in attach(model).items()}
    return {name: each for name, each in found.items() if isinstance(each, CompandingQuantizer)}


def trained(methods: list[Any], model: dict[str, Any] | None = None, **more: Any) -> tuple[Session, list[Any]]:
    session, lines = build(run_config(methods, model, **more)), []
    train(session, lines.append)
    return session, lines


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channel", [False, True])
def test_every_layer_begins_as_a_uniform_quantizer_of_three_deviations(channel: bool, normalize: bool) -> None:
    model = network()
    method = lcq(channel=channel, normalize=normalize, intervals=5)
    method.prepare(model, NO_DATA)
    method.prepared(model)
    found = quantizers(model)
    assert list(found) == ["0", "3"]
    for name, quantizer in found.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert (quantizer.bits, quantizer.per_channel, quantizer.normalize) == (3, channel, normalize)
        assert quantizer.log_slopes is not None
        assert quantizer.log_slopes.tolist() == [0.0] * 5
        dims = tuple(range(1, weight.dim())) if channel else None
        step = weight.std(dim=dims, correction=0, keepdim=channel)
        torch.testing.assert_close(quantizer.step(weight).detach(), step)  # 3 deviations in 3 steps
        torch.testing.assert_close(quantizer(weight).detach(), step * (weight / step).round().clamp(-3, 3))
    assert LearnedCompanding.Config().intervals == 16
    assert float(lcq(alpha_start=2.0).config.alpha_start) == 2.0


@pytest.mark.parametrize("normalize", [True, False])
def test_the_start_of_alpha_is_of_the_effective_weight(normalize: bool) -> None:
    stack = [
        {"name": "satnl", "kappa": 1.0, "kappa_unit": "std", "start": "weights"},
        {"name": "lcq", "alpha_start": 1.5, "normalize": normalize},
    ]
    for layer in attach(build(run_config(stack)).model).values():
        effective = layer.weight_transform(layer.weight).detach()
        deviation = effective.std(correction=0)
        assert float(deviation) < 0.9 * float(layer.weight.detach().std(correction=0))
        own = layer.weight_quantizer
        assert isinstance(own, CompandingQuantizer)
        torch.testing.assert_close(own.step(effective).detach(), 1.5 * deviation / 3)
        assert float(own.learned_range.detach()) == pytest.approx(1.5 if normalize else 1.5 * float(deviation))


def test_alpha_and_theta_have_rates_and_a_decay_of_their_own() -> None:
    for decay in (0.0, 0.02):
        settings = {"alpha_learning_rate": 0.5, "theta_learning_rate": 3.0, "weight_decay": decay}
        session = build(
            run_config([{"name": "lcq", **settings}], train={"epochs": 1, "batch_size": 40, "weight_decay": 0.1})
        )
        rate, by_id = session.config.train.learning_rate, {}
        for group in session.optimizer.param_groups:
            by_id |= {id(p): (pytest.approx(group["lr"] / rate), group["weight_decay"]) for p in group["params"]}
        for quantizer in quantizers(session.model).values():
            assert by_id[id(quantizer.learned_range)] == (0.5, decay)
            assert by_id[id(quantizer.log_slopes)] == (3.0, decay)
        assert by_id[id(attach(session.model)["layer1"].weight)] == (1.0, 0.1)
    assert LearnedCompanding.Config().weight_decay == 0
    untouched = build(run_config(["lcq"], train={"epochs": 1, "batch_size": 40, "weight_decay": 0.1}))
    for group in untouched.optimizer.param_groups:
        own = {id(q.learned_range) for q in quantizers(untouched.model).values()}
        if any(id(p) in own for p in group["params"]):
            assert (group["lr"], group["weight_decay"]) == (untouched.config.train.learning_rate, 0.0)


@pytest.mark.parametrize(
    "model", [{"name": "mlp5", "width": 16}, {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2}], ids=str
)
@pytest.mark.parametrize("channel", [False, True])
def test_weights_ranges_and_curves_all_learn(model: dict[str, Any], channel: bool) -> None:
    more = {"quantizer": {"granularity": "channel"}} if channel else {}
    config = run_config(["lcq"], model, **more)
    before = {name: p.detach().clone() for name, p in build(config).model.named_parameters()}
    session, lines = trained(["lcq"], model, **more)
    for name, parameter in session.model.named_parameters():
        if name.endswith(("learned_range", "log_slopes", ".weight")):
            assert not torch.equal(parameter, before[name]), name
            assert bool(parameter.isfinite().all()), name
    kept = {name.rpartition(".")[2] for name in session.progress.best_state}
    assert {"learned_range", "log_slopes"} <= kept
    ranges = [float(q.learned_range.detach().mean()) for q in quantizers(session.model).values()]
    slopes = [float(q.compressor().slopes[0].detach()) for q in quantizers(session.model).values()]
    assert lines[-1]["lcq/alpha"] == pytest.approx(sum(ranges) / len(ranges), rel=1e-5)
    assert lines[-1]["lcq/slope_at_zero"] == pytest.approx(sum(slopes) / len(slopes), rel=1e-5)
    assert lines[-1]["lcq/slope_at_zero"] != 1


def test_levels_move_towards_zero() -> None:
    settings = {"epochs": 12, "batch_size": 40, "learning_rate": 3e-3, "precision": "fp32"}
    method = {"name": "lcq", "theta_learning_rate": 5.0}
    session, lines = trained([method], {"name": "mlp5", "width": 32}, train=settings)
    assert lines[-1]["lcq/slope_at_zero"] > 1.05
    assert lines[-1]["train/loss"] < 0.7 * lines[0]["train/loss"]
    for name, layer in attach(session.model).items():
        own = layer.weight_quantizer
        assert isinstance(own, CompandingQuantizer)
        values = own(layer.weight)
        assert len(values.unique()) <= 7
        uniform = own.step(layer.weight) * own.codes(layer.weight)
        assert float((values - uniform).abs().max()) > 0.02 * float(own.step(layer.weight)), name


def test_alpha_stays_positive() -> None:
    method, model = lcq(channel=True), network()
    method.prepare(model, NO_DATA)
    with torch.no_grad():
        for quantizer in quantizers(model).values():
            quantizer.learned_range[1] = -0.3
            quantizer.learned_range[2] = 0.7
    method.after_step(Step(0, 1, model))
    for quantizer in quantizers(model).values():
        assert quantizer.learned_range.flatten()[1:3].tolist() == pytest.approx([1e-5, 0.7])
    settings = {"name": "lcq", "alpha_learning_rate": 100.0, "theta_learning_rate": 100.0}
    session, _ = trained([settings], train={"epochs": 2, "batch_size": 40, "learning_rate": 0.1, "precision": "fp32"})
    for quantizer in quantizers(session.model).values():
        assert float(quantizer.learned_range.detach().min()) >= 1e-5


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scale", ["keep_step", "keep_range", "recalibrate"])
def test_what_is_deployed(scale: str, bits: int) -> None:
    session, _ = trained(["lcq"], target_bit=bits, deploy={"bits": [2, 3, 4, 8], "scale": scale})
    source = attach(session.model)
    for other in (2, 3, 4, 8, "float"):
        deployed = attach(session.evaluator.deployed(session.model, other))  # type: ignore[arg-type]
        for name, layer in source.items():
            own, weight = layer.weight_quantizer, layer.weight.detach()
            assert isinstance(own, CompandingQuantizer)
            wanted: Tensor = weight
            if other == bits:
                wanted = own(weight)
            elif isinstance(other, int):
                kept = MaxAbsQuantizer(other) if scale == "recalibrate" else own.at_bits(other, scale)  # type: ignore[arg-type]
                wanted = kept(weight)
            assert torch.equal(deployed[name].weight, wanted.detach()), (name, other)


def test_two_bits_have_no_theta() -> None:
    session, lines = trained(["lcq"], target_bit=2)
    assert not any(name.endswith("log_slopes") for name, _ in session.model.named_parameters())
    assert lines[-1]["lcq/slope_at_zero"] == 1
    for layer in attach(session.model).values():
        assert len(layer.quantized_weight().unique()) <= 3


@pytest.mark.parametrize(
    "methods",
    [
        ["lcq", {"name": "dampening", "strength": 1.0, "start": 0.0}],
        ["lcq", "kure"],
        ["satnl", "lcq"],
        ["lcq", "bn_reestimation"],
    ],
    ids=str,
)
def test_stacks_train(methods: list[Any]) -> None:
    model = {"name": "resnet18", "width": 2} if "bn_reestimation" in methods else None
    session, lines = trained(methods, model)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert len(quantizers(session.model)) == len(attach(session.model))


def test_dampening_pulls_weights_to_their_levels() -> None:
    distances = []
    for more in ([], [{"name": "dampening", "strength": 20.0, "start": 0.0}]):
        session, _ = trained(["lcq", *more], train={"epochs": 6, "batch_size": 40, "learning_rate": 5e-3})
        far = [
            ((own(layer.weight) - layer.weight).square().mean() / layer.weight.var()).item()
            for layer in attach(session.model).values()
            if isinstance(own := layer.weight_quantizer, WeightQuantizer)
        ]
        distances.append(sum(far))
    assert distances[1] < 0.8 * distances[0], distances


def test_what_holds_multiples_of_a_step_is_refused() -> None:
    with pytest.raises(
        SlotTakenError, match=r"'lcq' learns levels .* which FrozenQuantizer around them in layer 'layer1'"
    ):
        build(run_config(["lcq", "freezing"]))
    trained(["lcq", "freezing"], target_bit=2)
    for methods in (["lcq", "lsq"], ["ste", "lcq"]):
        with pytest.raises(SlotTakenError, match="slot weight_quantizer already holds"):
            build(run_config(methods))


def test_all_zero_weights_leave_zero() -> None:
    model = network()
    nn.init.zeros_(model[3].weight)
    lcq().prepare(model, NO_DATA)
    optimizer, inputs = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 2, 4, 4)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.arange(8) % 5).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    assert bool(model[3].weight.any())
    assert bool(attach(model)["3"].quantized_weight().any())
