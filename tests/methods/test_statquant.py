"""Fully quantized training: which copy of dY has how many bits, the forward pass, draws, stacks, resuming."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dampening import run_config
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.core.errors import Stopped, UserError
from harness.methods.base import Context, Step
from harness.methods.statquant import QUANTIZERS, FullyQuantizedTraining
from harness.quantization.layers import GRADIENT_SLOTS
from harness.quantization.slots import SlotTakenError, Unfilled
from harness.training import checkpoint
from harness.training.build import build
from harness.training.loop import train
from harness.training.session import Session

CONTEXT = Context(target_bit=3, seed=3)
VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}


def prepared(*layers: nn.Module, context: Context = CONTEXT, **settings: Any) -> Any:
    config = FullyQuantizedTraining.Config(**{"forward": "float", **settings})
    method, model = FullyQuantizedTraining(config, context), nn.Sequential(*layers)
    method.prepare(model, NO_DATA)
    method.prepared(model)
    return method


def gradients(layer: nn.Module, x: Tensor, of_output: Tensor) -> list[Tensor]:
    """Of input, weight and bias."""
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(layer(x), [x, *layer.parameters()], of_output.to(x.dtype)))


def trained(*methods: Any, **changes: Any) -> Session:
    session = build(run_config(list(methods), **changes))
    train(session, lambda metrics: None)
    return session


def same(one: Session, other: Session) -> bool:
    left, right = one.model.state_dict(), other.model.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_dx_comes_from_few_bits_and_dw_from_eight(quantizer: str) -> None:
    """With a weight of ones on the diagonal dX is the one copy, with such an input dW is the other."""
    layer, of_output = nn.Linear(300, 300), torch.randn(300, 300)
    nn.init.eye_(layer.weight)
    prepared(layer, bits=3, quantizer=quantizer)
    of_x, of_weight, of_bias = gradients(layer, torch.eye(300), of_output)
    torch.testing.assert_close(of_bias, of_weight.sum(1))
    assert not torch.equal(of_x, of_output)
    parts = {"tensor": of_weight[None], "sample": of_weight, "householder": of_weight}[quantizer]  # (O, N): columns
    counts = [len(part.unique()) for part in parts[:20]]
    assert 100 < max(counts) <= 256
    if quantizer != "householder":
        rows = {"tensor": of_x[None], "sample": of_x}[quantizer]
        assert 4 < max(len(row.unique()) for row in rows) <= 8
    error, finer = (float((copy - of_output).square().mean()) for copy in (of_x, of_weight.T))
    assert 0.02 < error < 2
    assert finer < error / 300, "(255 / 7)^2 = 1300, times what columns and groups make of it"


def test_each_copy_may_be_float() -> None:
    layer, x, of_output = nn.Linear(6, 5), torch.randn(7, 6), torch.randn(7, 5)
    wanted = gradients(layer, x, of_output)
    prepared(layer, weight_gradient_bits=None, bits=2)
    of_x, *rest = gradients(layer, x, of_output)
    assert not torch.equal(of_x, wanted[0])
    assert all(map(torch.equal, rest, wanted[1:]))
    layer.grad_input_quantizer, layer.grad_weight_quantizer = Unfilled(), Unfilled()
    prepared(layer, weight_gradient_bits=2, bits=None)
    of_x, *rest = gradients(layer, x, of_output)
    assert torch.equal(of_x, wanted[0])
    assert not any(map(torch.equal, rest, wanted[1:]))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_convolutions_tokens_and_small_batches(quantizer: str) -> None:
    convolution, linear = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(3, 4)
    prepared(convolution, linear, quantizer=quantizer)
    for samples in (1, 2, 5):
        for layer, shape in ((convolution, (3, 6, 6)), (linear, (5, 3)), (linear, (3,))):
            x = torch.randn(samples, *shape)
            plain = nn.Conv2d(3, 4, 3, 2, 1) if layer is convolution else nn.Linear(3, 4)
            plain.load_state_dict(layer.state_dict())
            of_output = torch.randn(plain(x).shape)
            for found, wanted in zip(gradients(layer, x, of_output), gradients(plain, x, of_output), strict=True):
                assert float((found - wanted).abs().max()) < 0.1 * float(wanted.abs().max()) + 0.1
    silent = gradients(convolution, torch.randn(4, 3, 6, 6), torch.zeros(4, 4, 3, 3))
    assert not any(each.any() for each in silent)


def test_under_autocast_the_copies_are_rounded_in_fp32_and_cast() -> None:
    layer, x = nn.Linear(40, 40), torch.randn(50, 40)
    nn.init.eye_(layer.weight)
    prepared(layer, bits=3, quantizer="tensor")
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.requires_grad_())
    of_output = torch.randn(50, 40).to(torch.bfloat16)
    (of_x,) = torch.autograd.grad(y, x, of_output)
    assert 4 < len(of_x.unique()) <= 8


# Draws


def test_draws_depend_on_seed_step_layer_and_slot_alone() -> None:
    x, of_output = torch.randn(9, 6), torch.randn(9, 6)
    found = {}
    for seed in (3, 4):
        layers = [nn.Linear(6, 6) for _ in range(2)]
        method = prepared(*layers, bits=3, context=replace(CONTEXT, seed=seed))
        for layer in layers:
            nn.init.eye_(layer.weight)  # type: ignore[arg-type]
        for step, order in ((0, layers), (1, layers), (2, layers[::-1])):
            method.on_step_start(Step(step, 3, nn.Sequential(*layers)))
            torch.rand(5)
            for layer in order:
                found[seed, step, layers.index(layer)] = gradients(layer, x, of_output)[0]
        method.on_step_start(Step(2, 3, nn.Sequential(*layers)))
        assert torch.equal(gradients(layers[0], x, of_output)[0], found[seed, 2, 0])
        assert not torch.equal(gradients(layers[0], x, of_output)[0], found[seed, 2, 0]), "another pass of the step"
    each = list(found.values())
    assert not any(torch.equal(one, other) for place, one in enumerate(each) for other in each[:place])


@pytest.mark.parametrize(
    "quantizer", [pytest.param(name, marks=pytest.mark.slow if name != "householder" else ()) for name in QUANTIZERS]
)
def test_a_resumed_run_with_the_papers_forward_pass_is_the_same(quantizer: str, tmp_path: Path) -> None:
    entry = {"name": "statquant", "bits": 4, "quantizer": quantizer}
    whole = trained(entry)
    file, left = tmp_path / "checkpoint.pt", iter([False] * 4)
    stopped = build(run_config([entry]))
    with pytest.raises(Stopped):
        train(stopped, lambda metrics: None, lambda: next(left, True))
    checkpoint.save(file, stopped)
    resumed = build(run_config([entry]))
    assert checkpoint.restore(file, resumed)
    train(resumed, lambda metrics: None)
    assert same(resumed, whole)


# Limits and the forward pass


def test_without_any_quantizer_it_is_float_training_bit_for_bit() -> None:
    nothing = {"name": "statquant", "bits": None, "weight_gradient_bits": None, "forward": "float"}
    plain = trained("none")
    assert same(trained(nothing), plain)
    for change in ({"bits": 8}, {"weight_gradient_bits": 8}):
        assert not same(trained({**nothing, **change}), plain)


def test_with_float_gradients_it_is_quantization_aware_training_bit_for_bit() -> None:
    entry = {"name": "statquant", "bits": None, "weight_gradient_bits": None}
    ste = trained({"name": "ste", "scale_gradient": "detached"}, target_bit="w8a8")
    assert same(trained(entry, target_bit="w8a8"), ste)
    assert same(trained({**entry, "forward": "target"}, target_bit="w8a8"), ste)
    assert not same(trained({**entry, "forward": "float"}, target_bit="w8a8"), ste)


@pytest.mark.parametrize(
    ("forward", "target", "weights", "inputs"),
    [
        ("w8a8", None, 8, 8),
        ("w8a8", 3, 8, 8),
        ("w8a8", "w4a4", 8, 8),
        ("target", 3, 3, None),
        ("target", "w4a4", 4, 4),
        ("float", "w4a4", None, None),
    ],
)
def test_what_the_forward_pass_rounds(forward: str, target: Any, weights: int | None, inputs: int | None) -> None:
    where = {} if target else {"watch_bit": 3}
    entry = {"name": "statquant", "forward": forward}
    session = build(run_config([entry], target_bit=target, activations={"first_last": "same"}, **where))
    layers = [layer for layer in session.model.modules() if hasattr(layer, "grad_input_quantizer")]
    assert len(layers) == 5
    for layer in layers:
        assert getattr(layer.weight_quantizer, "bits", None) == weights
        assert getattr(layer.input_quantizer, "bits", None) == inputs
        assert [getattr(layer, slot).bits for slot in GRADIENT_SLOTS] == [8, 8]


def test_a_forward_pass_at_a_target_needs_one() -> None:
    with pytest.raises(UserError, match=r"statquant\.forward: target: there is no target_bit"):
        build(run_config([{"name": "statquant", "forward": "target"}], target_bit=None, watch_bit=3))


def test_stacks() -> None:
    entry = {"name": "statquant", "forward": "float", "bits": 5}
    session = trained("lsq", entry, target_bit="w4a4")
    assert not same(session, trained("lsq", target_bit="w4a4"))
    with pytest.raises(SlotTakenError, match="slot weight_quantizer already holds"):
        build(run_config(["lsq", "statquant"]))
    with pytest.raises(SlotTakenError, match=r"differentiates gradients, which \w+Quantizer in slot grad_input"):
        build(run_config(["gradient_l1", entry]))


def test_excluded_layers_and_norms() -> None:
    changes = {"model": VIT, "exclude": ["head"], "quantizer": {"norms": "quantized"}, "target_bit": "w4a4"}
    found = dict(build(run_config(["statquant"], **changes)).model.named_modules())
    assert type(found["head"]) is nn.Linear
    (norm,) = (each for name, each in found.items() if name.endswith("blocks.0.norm1"))
    assert norm.weight_quantizer.bits == 8
    assert not hasattr(norm, "grad_input_quantizer")


@pytest.mark.slow
def test_a_compiled_network_has_the_same_draws() -> None:
    x, labels = torch.randn(16, 6), torch.randint(5, (16,), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    method = prepared(*model, bits=3)
    found = []
    for forward in (model, torch.compile(model, backend="aot_eager", dynamic=False)):
        method.on_step_start(Step(0, 1, model))
        loss = nn.functional.cross_entropy(forward(x), labels)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
