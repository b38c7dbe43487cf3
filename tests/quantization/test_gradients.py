"""Slots for gradients: dY as used for the input's gradient, and as used for those of weight and bias."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.utils.checkpoint import checkpoint

from harness import attach
from harness.core.errors import UserError
from harness.quantization.layers import GRADIENT_SLOTS, QuantMatMul


class Changed(nn.Module):
    """Applies a function to gradients, and remembers their types."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> None:
        super().__init__()
        self.function, self.types = function, list[torch.dtype]()

    def forward(self, gradient: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        self.types.append(gradient.dtype)
        return self.function(gradient)


LAYERS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda bias: nn.Linear(6, 5, bias), (7, 6)),
    "linear, tokens": (lambda bias: nn.Linear(6, 5, bias), (2, 3, 6)),
    "linear, one row": (lambda bias: nn.Linear(6, 5, bias), (6,)),
    "strided": (lambda bias: nn.Conv2d(4, 6, 3, 2, bias=bias), (2, 4, 9, 8)),
    "grouped": (lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (2, 4, 7, 7)),
    "depthwise, dilated": (lambda bias: nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=bias), (2, 4, 9, 9)),
    "padded": (lambda bias: nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), bias=bias), (2, 4, 8, 8)),
    "same": (lambda bias: nn.Conv2d(4, 6, (2, 4), padding="same", bias=bias), (2, 4, 8, 8)),
    "circular": (lambda bias: nn.Conv2d(4, 6, 3, 2, 1, padding_mode="circular", bias=bias), (2, 4, 8, 8)),
    "reflect, same": (lambda bias: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=bias), (2, 4, 8, 8)),
    "pixels": (lambda bias: nn.Conv2d(4, 6, 1, 2, bias=bias), (2, 4, 8, 8)),
    "no batch": (lambda bias: nn.Conv2d(4, 6, 3, bias=bias), (4, 8, 8)),
}


def slotted(layer: nn.Module, **slots: Callable[[Any], nn.Module]) -> nn.Module:
    attach(nn.Sequential(layer), **slots)
    return layer


def identities() -> dict[str, Callable[[Any], nn.Module]]:
    return {slot: lambda layer: Changed() for slot in GRADIENT_SLOTS}


def called(layer: nn.Module) -> list[int]:
    """How often each slot for gradients was called."""
    return [len(getattr(layer, slot).types) for slot in GRADIENT_SLOTS]


def results(layer: nn.Module, x: Tensor, bf16: bool = False) -> list[Tensor]:
    """The output, and the gradients of input, weight and bias."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        y = layer(x)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], direction)]


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_identities_change_no_bit(kind: str, bias: bool, bf16: bool) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    plain = build(bias)
    layer = slotted(copy.deepcopy(plain), **identities())
    empty = slotted(copy.deepcopy(plain))
    x = inputs(*shape)
    if kind == "pixels":  # plain torch is wrong there on some processors
        plain = empty
    wanted = results(plain, x, bf16)
    assert len(wanted) == 3 + bias
    for found in (results(layer, x, bf16), results(empty, x, bf16)):
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert [each.dtype for each in found] == [each.dtype for each in wanted]
    assert called(layer) == [1, 1]
    assert layer.grad_input_quantizer.types == layer.grad_weight_quantizer.types == [torch.float32]  # type: ignore


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_other_orders_in_memory(memory: torch.memory_format) -> None:
    plain = nn.Conv2d(16, 32, 3, padding=1).to(memory_format=memory)
    layer = slotted(copy.deepcopy(plain), **identities())
    x = inputs(2, 16, 8, 8).to(memory_format=memory)
    found, wanted = results(layer, x), results(plain, x)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert [each.stride() for each in found] == [each.stride() for each in wanted]
    linear = nn.Linear(6, 5)
    layer = slotted(copy.deepcopy(linear), **identities())
    transposed = inputs(6, 7).T
    assert all(map(torch.equal, results(layer, transposed), results(linear, transposed)))


@pytest.mark.parametrize("kind", ["linear, tokens", "grouped", "circular", "pixels"])
def test_each_slot_has_its_own_gradients(kind: str) -> None:
    """With powers of two, which are exact: dX twice, dW and db four times the plain ones."""
    build, shape = LAYERS[kind]
    layer = slotted(build(True))
    y, *wanted = results(layer, inputs(*shape))
    other = slotted(
        copy.deepcopy(layer),
        grad_input_quantizer=lambda layer: Changed(lambda gradient: 2 * gradient),
        grad_weight_quantizer=lambda layer: Changed(lambda gradient: 4 * gradient),
    )
    same, *found = results(other, inputs(*shape))
    assert torch.equal(same, y)
    factors = (2, 4, 4)
    assert all(torch.equal(one, k * each) for one, k, each in zip(found, factors, wanted, strict=True))
    one = slotted(copy.deepcopy(layer), grad_weight_quantizer=lambda layer: Changed(lambda gradient: 0 * gradient))
    _, of_x, of_weight, of_bias = results(one, inputs(*shape))
    assert torch.equal(of_x, wanted[0])
    assert not of_weight.any()
    assert not of_bias.any()


def test_empty_slots_leave_no_trace_in_the_graph() -> None:
    for layer in (nn.Linear(3, 2), nn.Conv2d(3, 2, 1)):
        x = inputs(3, 3) if isinstance(layer, nn.Linear) else inputs(1, 3, 2, 2)
        plain = layer(x).grad_fn
        empty = slotted(layer)(x).grad_fn
        assert type(empty) is type(plain)
        assert [type(each) for each, _ in empty.next_functions] == [type(each) for each, _ in plain.next_functions]
    a, b = inputs(2, 3).requires_grad_(), inputs(3, 2)
    assert type(QuantMatMul()(a, b).grad_fn) is type((a @ b).grad_fn)


def test_only_what_is_needed_is_computed() -> None:
    layer: Any = slotted(nn.Linear(4, 3), **identities())
    layer(inputs(2, 4)).sum().backward()  # a first layer: the input has no gradient
    assert called(layer) == [0, 1]
    layer.weight.requires_grad_(False)
    layer.weight.grad = layer.bias.grad = None
    layer(inputs(2, 4)).sum().backward()
    assert called(layer) == [0, 2]
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((3,), 2.0))
    layer.bias.requires_grad_(False)
    layer(inputs(2, 4).requires_grad_()).sum().backward()
    assert called(layer) == [1, 2]
    assert layer(inputs(2, 4)).grad_fn is None, "nothing is trained"
    with torch.no_grad():
        assert layer(inputs(2, 4).requires_grad_()).grad_fn is None


def test_once_for_each_backward_pass() -> None:
    layer: Any = slotted(nn.Linear(4, 4), **identities())
    x = inputs(2, 4).requires_grad_()
    y = layer(torch.relu_(layer(x))).square().sum()  # a shared layer, changed in place by what follows
    y.backward(retain_graph=True)
    first = x.grad.clone()
    assert called(layer) == [2, 2]
    y.backward()
    assert called(layer) == [4, 4]
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()  # freed with the graph around it
    plain = nn.Linear(4, 4)
    plain.load_state_dict(layer.state_dict())
    same = inputs(2, 4).requires_grad_()
    plain(torch.relu(plain(same))).square().sum().backward()
    assert torch.equal(same.grad, first)


class Dithered(nn.Module):
    """Rounds stochastically to multiples of 1/8, by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, gradient: Tensor) -> Tensor:
        return (8 * gradient + torch.rand(gradient.shape, generator=self.generator)).floor() / 8


def test_a_random_quantizer_draws_from_a_generator_of_its_own() -> None:
    layer = slotted(nn.Linear(4, 3), **{slot: lambda layer: Dithered() for slot in GRADIENT_SLOTS})
    twin, state = copy.deepcopy(layer), torch.get_rng_state()
    first, again = (results(each, inputs(5, 4)) for each in (layer, twin))
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), state)
    second = results(layer, inputs(5, 4))
    assert not torch.equal(first[1], second[1])
    draws, wanted = (
        torch.stack([results(layer, inputs(5, 4))[2] for _ in range(100)]),
        results(nn.Linear(4, 3), inputs(5, 4)),
    )
    assert bool(((draws.mean(0) - wanted[2]).abs() < 5 * draws.std(0) / 100**0.5).all()), "unbiased"


def test_products_of_two_activations() -> None:
    product = QuantMatMul()
    a, b = inputs(2, 3, 4, 5).requires_grad_(), inputs(3, 5, 4).requires_grad_()  # b is broadcast
    direction = inputs(2, 3, 4, 4)
    wanted = torch.autograd.grad(a @ b, [a, b], direction)
    changed = {slot: Changed() for slot in QuantMatMul.GRADIENT_SLOTS}
    for slot, module in changed.items():
        product.fill(slot, module)
    assert all(map(torch.equal, torch.autograd.grad(product(a, b), [a, b], direction), wanted))
    assert [len(each.types) for each in changed.values()] == [1, 1]
    changed["grad_input_quantizer"].function = lambda gradient: 2 * gradient
    changed["grad_other_quantizer"].function = lambda gradient: 4 * gradient
    found = torch.autograd.grad(product(a, b), [a, b], direction)
    assert torch.equal(found[0], 2 * wanted[0])
    assert torch.equal(found[1], 4 * wanted[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(a, b), a @ b)


@pytest.mark.slow
def test_recomputed_activations() -> None:
    layer: Any = slotted(nn.Linear(4, 4), **identities())
    x = inputs(2, 4).requires_grad_()
    wanted = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    y = checkpoint(layer, x, use_reentrant=False).square().sum()
    assert all(map(torch.equal, torch.autograd.grad(y, [x, *layer.parameters()]), wanted))
    assert called(layer) == [2, 2]


# Where gradients are not plain


def test_gradients_of_gradients_are_refused() -> None:
    layer = slotted(nn.Linear(4, 3), grad_weight_quantizer=lambda layer: Changed())
    x = inputs(2, 4).requires_grad_()
    with pytest.raises(UserError, match=r"^Changed in slot grad_weight_quantizer .* cannot be differentiated again"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(UserError, match=r"^Changed in slot grad_weight_quantizer .*is_grads_batched"):
        torch.autograd.grad(layer(x), x, torch.ones(3, 2, 3), is_grads_batched=True)
    product = QuantMatMul()
    product.fill("grad_other_quantizer", Changed())
    with pytest.raises(UserError, match=r"^Changed in slot grad_other_quantizer"):
        torch.autograd.grad(product(x, x.T).sum(), x, create_graph=True)


def test_what_would_not_see_the_slots_is_refused() -> None:
    layer = slotted(nn.Linear(4, 3), **identities())

    def loss(x: Tensor) -> Tensor:
        total: Tensor = layer(x).sum()
        return total

    words = "^Changed in slot grad_input_quantizer and Changed in slot grad_weight_quantizer changes gradients"
    with pytest.raises(UserError, match=words):
        torch.func.grad(loss)(inputs(2, 4))
    with pytest.raises(UserError, match=words):
        torch.func.jvp(loss, (inputs(2, 4),), (inputs(2, 4),))
    with pytest.raises(UserError, match=words):
        torch.func.vmap(layer)(inputs(2, 4))
    layer.requires_grad_(False)
    assert torch.func.vmap(layer)(inputs(2, 4)).shape == (2, 3), "nothing is trained"


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    attach(model, **{slot: lambda layer: Changed(lambda gradient: 2 * gradient) for slot in GRADIENT_SLOTS})
    return model


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_a_recorded_network_computes_the_same() -> None:
    model, images, others = small(), inputs(2, 3, 4, 4), inputs(5, 3, 4, 4)
    assert torch.equal(symbolic_trace(model)(others), model(others))
    traced = torch.jit.trace(model, images, check_trace=False)
    assert torch.equal(traced(others), model(others))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_computes_the_same(strict: bool) -> None:
    model, images = small(), inputs(2, 3, 4, 4)
    exported = torch.export.export(model, (images,), strict=strict)
    assert torch.equal(exported.module()(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_goes_through_the_slots(backend: str) -> None:
    model, images = small(), inputs(2, 3, 4, 4)
    wanted = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    torch.compiler.reset()
    found = torch.autograd.grad(
        torch.compile(model, backend=backend, dynamic=False)(images).square().sum(), list(model.parameters())
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert called(model[0]) == [0, 2]
    assert called(model[3]) == [2, 2]
