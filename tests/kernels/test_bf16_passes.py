"""Quantized weights that a pass gives in bf16 at once: numbers and gradients as autocast makes them of fp32 ones."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from companding_common import shaped
from native_penalties_common import MEMORY, SHAPES, normal
from passes_common import pass_of
from torch import Tensor, nn

from harness.kernels import cpu
from harness.quantization import ClippedQuantizer, LSQQuantizer, MaxAbsQuantizer, WeightQuantizer
from harness.quantization.layers import QuantLayer, attach

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

Made = Callable[[Tensor, bool], WeightQuantizer]
QUANTIZERS: dict[str, Made] = {
    "max-abs": lambda weight, channel: MaxAbsQuantizer(3, channel),
    "clipped": lambda weight, channel: ClippedQuantizer(3, channel).fit(weight),
    "lsq": lambda weight, channel: LSQQuantizer(3, channel).fit(weight),
    "companding": lambda weight, channel: shaped(3, weight, per_channel=channel),
    "companding, 8 bits": lambda weight, channel: shaped(8, weight, per_channel=channel),
}


def found(quantizer: WeightQuantizer, weight: Tensor, bf16: bool) -> tuple[Tensor, ...]:
    """The value in bf16 and all gradients, by an upstream gradient in bf16."""
    leaf = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = quantizer(leaf, bf16=True) if bf16 else quantizer(leaf).bfloat16()
    assert value.dtype == torch.bfloat16
    assert bool(pass_of(value)) == bf16
    upstream = normal(tuple(weight.shape), seed=5).bfloat16()
    return value.detach(), *torch.autograd.grad(value, (leaf, *quantizer.parameters()), upstream)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_it_is_what_autocast_makes_of_fp32(name: str, channel: bool, memory: str) -> None:
    for shape in SHAPES:
        weight = normal(shape, memory)
        quantizer = QUANTIZERS[name](weight, channel)
        for one, other in zip(found(quantizer, weight, True), found(quantizer, weight, False), strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()


def test_rounding_is_to_even_and_keeps_what_is_no_number() -> None:
    values = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -1e-40, 0.0, -0.0, torch.inf, torch.nan]
    )
    for value in (*values.tolist(), *normal((50,)).tolist()):
        weight = torch.full((3, 5), value)
        rounded = cpu.quantize(weight, torch.ones(1), -1.0, bf16=True)
        assert torch.equal(rounded.nan_to_num(), weight.round().bfloat16().nan_to_num())
        step = torch.tensor([abs(value)]) if value else torch.ones(1)
        by_step = cpu.quantize(weight, step, -1.0)
        narrow = cpu.quantize(weight, step, -1.0, bf16=True)
        assert torch.equal(narrow.isnan(), by_step.isnan())  # of which there is more than one pattern of bits
        if not bool(narrow.isnan().any()):
            assert torch.equal(narrow.view(torch.int16), by_step.bfloat16().view(torch.int16))


def networks(name: str) -> list[nn.Module]:
    """The same twice: by passes, and by plain operations."""
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))

        def quantizer_of(layer: QuantLayer, fused: bool = fused) -> Any:
            made: Any = QUANTIZERS[name](layer.weight.detach(), False)
            made.fused = fused
            return made

        attach(model, weight_quantizer=quantizer_of)
        made.append(model)
    return made


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_network_under_autocast_computes_and_learns_as_by_plain_operations(name: str) -> None:
    results = []
    for model in networks(name):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(normal((6, 2, 4, 4))).float().square().mean()
        loss.backward()
        results.append((loss.detach(), {key: p.grad for key, p in model.named_parameters()}))
    (loss, native), (wanted, plain) = results
    assert torch.equal(loss, wanted)
    for key, gradient in plain.items():
        assert gradient.dtype == native[key].dtype == torch.float32
        torch.testing.assert_close(native[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()) + 1e-7)


def layer_with(quantizer: nn.Module) -> QuantLayer:
    layer = attach(nn.Sequential(nn.Linear(30, 20)), weight_quantizer=lambda layer: quantizer)["0"]
    assert isinstance(layer, QuantLayer)
    return layer


class Doubled(MaxAbsQuantizer):
    def forward(self, weight: Tensor, bf16: bool = False) -> Tensor:
        assert not bf16, "nobody said that it can"
        return 2 * super().forward(weight)


def test_when_a_product_gets_it() -> None:
    layer = layer_with(MaxAbsQuantizer(3))
    assert layer.multiplied_weight().dtype == torch.float32
    with torch.autocast("cpu", torch.float16):
        assert layer.multiplied_weight().dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.multiplied_weight().dtype == torch.bfloat16
        assert layer.quantized_weight().dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            assert layer.multiplied_weight().dtype == torch.float32
        for other in (Doubled(3), nn.Identity()):
            assert layer_with(other).multiplied_weight().dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
        layer.weight_quantizer.fused = False  # type: ignore[assignment]
        assert layer.multiplied_weight().dtype == torch.float32


def test_it_can_be_differentiated_twice() -> None:
    second = []
    for bf16 in (True, False):
        weight = normal((6, 50)).requires_grad_()
        quantizer = LSQQuantizer(3).fit(weight.detach())
        value = quantizer(weight, bf16=True) if bf16 else quantizer(weight).bfloat16()
        (gradient,) = torch.autograd.grad(value.float().pow(3).sum(), quantizer.learned_step, create_graph=True)
        second.append(torch.autograd.grad(gradient.square(), weight)[0])
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-4)
    assert float(second[0].norm()) > 0
