"""Norm layers whose weight is quantized: their class, slots and copies, for any norm."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
from layers_common import Recording, images, network
from torch import Tensor, nn

from harness import LSQQuantizer, MaxAbsQuantizer, OscillationRegularizer, OscillationTracker, attach, round_to_nearest
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.quantization.audit import audit
from harness.quantization.layers import QuantLayer, weight_layers
from harness.quantization.norms import QuantNorm, is_norm
from harness.quantization.observing import input_sites, observe
from harness.quantization.quantizer import make_quantizer

MAPS, TOKENS, ROWS = (3, 8, 4, 4), (3, 5, 8), (3, 8)
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), ROWS),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(8), MAPS),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(8), MAPS),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(8, affine=True), MAPS),
    "LayerNorm": (lambda: nn.LayerNorm(8), TOKENS),
    "LayerNorm of maps": (lambda: nn.LayerNorm([8, 4, 4]), MAPS),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), MAPS),
    "RMSNorm": (lambda: nn.RMSNorm(8), TOKENS),
    "BatchNormAct2d": (lambda: timm.layers.BatchNormAct2d(8), MAPS),
    "GroupNorm1": (lambda: timm.layers.GroupNorm1(8), MAPS),
    "GroupNormAct": (lambda: timm.layers.GroupNormAct(8, group_size=4), MAPS),
    "timm LayerNorm": (lambda: timm.layers.LayerNorm(8), TOKENS),
    "LayerNorm2d": (lambda: timm.layers.LayerNorm2d(8), MAPS),
    "LayerNormAct2d": (lambda: timm.layers.LayerNormAct2d(8), MAPS),
    "RmsNorm": (lambda: timm.layers.RmsNorm(8), TOKENS),
    "RmsNorm2d": (lambda: timm.layers.RmsNorm2d(8), MAPS),
    "RmsNormAct2d": (lambda: timm.layers.RmsNormAct2d(8), MAPS),
    "SimpleNorm": (lambda: timm.layers.SimpleNorm(8), TOKENS),
    "FilterResponseNormAct2d": (lambda: timm.layers.FilterResponseNormAct2d(8), MAPS),
    "EvoNorm2dS0": (lambda: timm.layers.EvoNorm2dS0(8, group_size=4), MAPS),
}


def drawn(norm: nn.Module) -> nn.Module:
    """A norm with random weight and bias."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norm


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", list(NORMS))
def test_a_norm_computes_with_its_quantized_weight(kind: str, training: bool) -> None:
    build, shape = NORMS[kind]
    training = training and kind != "SyncBatchNorm"  # which trains on GPUs alone
    plain = drawn(build()).train(training)
    norm = copy.deepcopy(plain)
    (layer,) = attach(nn.Sequential(norm), norms=True).values()
    assert layer is norm
    assert isinstance(norm, QuantNorm)
    assert isinstance(norm, type(plain))
    assert torch.equal(norm(inputs(*shape)), plain(inputs(*shape))), "empty slots"
    latent = norm.weight
    norm.fill("weight_quantizer", MaxAbsQuantizer(3))
    with torch.no_grad():
        plain.weight.copy_(MaxAbsQuantizer(3)(latent))  # type: ignore[operator, arg-type]
    found, wanted = norm(inputs(*shape)), plain(inputs(*shape))
    assert torch.equal(found, wanted)
    assert norm.weight is latent, "the parameter itself stays"
    assert list(norm.state_dict()) == list(plain.state_dict())
    for one, other in zip(norm.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other), "running statistics"
    direction = inputs(*found.shape)
    found.backward(direction)
    wanted.backward(direction)
    for (name, one), other in zip(norm.named_parameters(), plain.parameters(), strict=True):
        if name != "weight":
            assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
    twin = latent.detach().clone().requires_grad_()
    MaxAbsQuantizer(3)(twin).backward(plain.weight.grad)
    assert torch.equal(norm.weight.grad, twin.grad)  # type: ignore[arg-type]


def test_what_counts_as_a_norm() -> None:
    others = [
        nn.BatchNorm2d(4, affine=False),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.Embedding(3, 4),
        nn.PReLU(),
    ]
    others += [timm.layers.FrozenBatchNormAct2d(4), timm.layers.ConvNormAct(3, 4), nn.Linear(2, 2), nn.Identity()]
    assert not any(map(is_norm, others))
    model = network()
    assert list(weight_layers(model)) == ["0", "4", "5.1"]
    assert list(weight_layers(model, norms=True)) == ["0", "1", "4", "5.0", "5.1"]
    assert list(weight_layers(model, ["1", "5.*"], norms=True)) == ["0", "4"]
    attach(model, norms=True)
    assert list(weight_layers(model)) == ["0", "1", "4", "5.0", "5.1"], "those with slots count from then on"


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("span", ["max", "mse"])
def test_a_norm_is_one_tensor(granularity: Any, span: Any) -> None:
    """A step for each weight of (C,) would leave them all as they are."""
    config = QuantizerConfig(granularity=granularity, range=span, norms="quantized")
    for norm in (nn.BatchNorm2d(8), nn.LayerNorm([4, 2])):
        drawn(norm)
        weight = norm.weight.detach().clone()
        quantizer = make_quantizer(config, 3, layer=norm).fit(weight)
        assert quantizer.step(weight).shape == ()
        assert len(quantizer(weight).unique()) <= 7
        deployed = round_to_nearest(nn.Sequential(norm), 3, quantizer=config)
        assert torch.equal(deployed[0].weight, quantizer(weight))
        own = make_quantizer(QuantizerConfig(range=span), 3).fit(weight)
        assert torch.equal(deployed[0].weight, own(weight))


def test_norms_have_slots_for_the_weight_alone() -> None:
    model, calls = network(), list[tuple[str, torch.dtype]]()
    layers = attach(model, norms=True, input_quantizer=lambda layer: Recording("x", lambda x: x, calls))
    model(images())
    assert len(calls) == 3, "linear and convolution layers"
    assert not hasattr(layers["1"], "input_quantizer")
    with pytest.raises(UserError, match="unknown slot"):
        layers["1"].fill("input_quantizer", nn.Tanh())
    with pytest.raises(UserError, match="unknown slot"):
        attach(network(), norms=True, inputs=lambda layer: nn.Tanh())
    layers["1"].fill("weight_quantizer", LSQQuantizer(3))
    assert layers["1"].weight_quantizer.fitted
    assert "1.weight_quantizer.learned_step" in model.state_dict()
    assert "QuantBatchNorm2d" in repr(model)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_apart(again: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    attach(model, norms=True, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    twin: Any = again(model)
    assert torch.equal(twin(images()), model(images()))
    assert type(twin[1]) is type(model[1])
    before = model[1].quantized_weight().clone()
    with torch.no_grad():
        twin[1].weight.zero_()
    assert torch.equal(model[1].quantized_weight(), before)


def test_a_failing_forward_pass_leaves_the_parameter() -> None:
    norm = nn.BatchNorm2d(4)
    attach(nn.Sequential(norm), norms=True, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    with pytest.raises(ValueError, match="4D"):
        norm(torch.ones(2, 4))
    assert isinstance(norm.weight, nn.Parameter)


def test_arithmetic_of_the_quantizer_is_fp32_under_autocast() -> None:
    model, calls = network(), list[tuple[str, torch.dtype]]()
    attach(model, norms=True, weight_quantizer=lambda layer: Recording("w", lambda w: w + 2.0**-20, calls))
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert calls == [("w", torch.float32)] * 5


def refused(what: str) -> nn.Module:
    norm = nn.BatchNorm1d(4)
    if what == "parametrized":
        nn.utils.parametrize.register_parametrization(norm, "weight", nn.Tanh())
    elif what == "lazy":
        return nn.LazyBatchNorm1d()
    else:
        norm.forward = lambda x: x  # type: ignore[method-assign]
    return norm


@pytest.mark.parametrize(
    ("what", "words"),
    [("parametrized", "computed from other"), ("lazy", "has no weights before"), ("own forward", "its own forward")],
)
def test_a_norm_that_a_quantizer_cannot_reach_is_refused(what: str, words: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), refused(what))
    with pytest.raises(UserError, match=f"'1'.*{words}"):
        attach(model, norms=True)
    assert list(attach(model, ["1"], norms=True)) == ["0"]
    assert list(attach(model)) == ["0"]


def test_the_audit_says_so() -> None:
    model = network()
    plain = audit(model, images())
    assert plain.named("quantized") == ["0.weight", "4.weight", "5.1.weight"]
    assert "1.weight" in plain.named("float by rule")
    asked = audit(model, images(), norms=True)
    assert asked.named("quantized") == ["0.weight", "1.weight", "4.weight", "5.0.weight", "5.1.weight"]
    assert asked.named("float by rule") == ["0.bias", "1.bias", "5.0.bias", "5.1.bias"]
    assert audit(model, images(), ["1"], norms=True).parameters["1.weight"] == "excluded"
    attach(model)
    assert audit(model, images(), norms=True).named("without slots") == ["1.weight", "5.0.weight"]
    attach(model, norms=True)
    assert audit(model, images()).parameters == asked.parameters

    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.norm.weight)

    read = audit(Past(), torch.randn(2, 3), norms=True)
    assert read.named("read past its layer") == ["norm.weight"]
    assert audit(Past(), torch.randn(2, 3)).named("read past its layer") == []


def test_the_library_takes_networks_without_slots() -> None:
    model = network()
    settings = {"norms": "quantized"}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        drawn(model[1]), drawn(model[5][0])
    OscillationRegularizer(model, 3, 1.0, settings).add_gradient()
    assert model[1].weight.grad.any()
    assert not model[1].bias.grad.any()
    tracker = OscillationTracker(model, 3, settings)
    assert list(tracker.codes()) == ["0", "1", "4", "5.0", "5.1"]
    assert not any(isinstance(layer, QuantLayer) for layer in model.modules()), "watching changes nothing"
    assert list(OscillationTracker(model, 3).codes()) == ["0", "4", "5.1"]
    latent = model[1].weight.detach().clone()
    kept = round_to_nearest(copy.deepcopy(model), 3)
    assert torch.equal(kept[1].weight, latent)
    deployed = round_to_nearest(copy.deepcopy(model), 3, quantizer=settings)
    assert torch.equal(deployed[1].weight, MaxAbsQuantizer(3)(latent))
    assert torch.equal(round_to_nearest(copy.deepcopy(model), "float", quantizer=settings)[1].weight, latent)
    left = round_to_nearest(copy.deepcopy(model), 3, quantizer=settings, exclude="1")
    assert torch.equal(left[1].weight, latent)
    mapped = round_to_nearest(copy.deepcopy(model), {"*": "float", "5.0": 2}, quantizer=settings)
    assert len(mapped[5][0].weight.unique()) <= 3
    assert torch.equal(mapped[1].weight, latent)


@pytest.mark.slow
def test_a_compiled_network_computes_and_learns_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), drawn(nn.BatchNorm2d(4)), drawn(timm.layers.LayerNorm2d(4)))
    attach(model, norms=True, weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend="aot_eager", dynamic=False, fullgraph=True)
    results = []
    for each, call in ((model, model), (twin, compiled)):
        y = call(images())
        results.append([y, *torch.autograd.grad(y.square().sum(), list(each.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(model.eval(), (images(),), strict=True)
    torch.testing.assert_close(exported.module()(images()), model(images()))


def test_inputs_of_norms_stay_float() -> None:
    model = network()
    attach(model, norms=True)
    assert list(input_sites(model)) == ["0.input_quantizer", "4.input_quantizer", "5.1.input_quantizer"]
    assert list(observe(model, [images()])) == list(input_sites(model))
