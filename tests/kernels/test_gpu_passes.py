"""Triton passes against plain operations: on a GPU, or in Triton's interpreter on the CPU."""

import os
import subprocess
import sys
from typing import Literal

import pytest
import torch
from passes_common import left_over, pass_of
from torch import nn

from harness import LSQQuantizer, OscillationRegularizer, OscillationTracker, attach
from harness.core.config_base import QuantizerConfig
from harness.kernels import dispatch
from harness.quantization import make_quantizer

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # has to be there before Triton is imported
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
HERE = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU; see the test of the interpreter")

CLIPPED, CHANNEL = QuantizerConfig(range="mse"), QuantizerConfig(granularity="channel")


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the tests below run by themselves")
def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "12 passed, 1 deselected" in ended.stdout


@pytest.fixture(autouse=True)
def _on_cpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(dispatch, "on_gpu", lambda device: True)


def network(quantized: tuple[str, ...] = ()) -> nn.Module:
    """More than one block a layer, fewer weights than one, zeros alone, and another order in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(70, 80), nn.Linear(30, 20), nn.Conv2d(8, 4, 3), nn.Linear(6, 5))
    nn.init.zeros_(model[4].weight)
    others = [str(i) for i in range(5) if str(i) not in quantized]
    attach(model, others, weight_quantizer=lambda layer: LSQQuantizer(3).fit(layer.weight))
    return model.to(DEVICE).to(memory_format=torch.channels_last)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def move(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for weight in weights(model)[:-1]:
            weight.add_(0.02 * torch.randn(weight.shape).to(DEVICE) * (-1) ** step)


@HERE
@pytest.mark.parametrize(
    ("quantized", "settings"), [((), None), (("1", "2"), None), ((), CLIPPED), ((), CHANNEL)], ids=str
)
def test_the_tracker_counts_the_same(quantized: tuple[str, ...], settings: QuantizerConfig | None) -> None:
    model = network(quantized)
    fast, plain = (OscillationTracker(model, 3, settings, fused=fused) for fused in (True, False))
    left, left_by_plain = left_over(fast, "update"), left_over(plain, "update")
    assert type(fast._pass).__name__ == "_TrackerInTriton"
    for step in range(8):
        move(model, step)
        fast.update()
        plain.update()
    assert left == [5 if settings is CHANNEL else 0] * 8
    assert left_by_plain == [5] * 8
    for name, state in plain.state_dict().items():
        for field, expected in state.items():
            assert torch.equal(fast.state_dict()[name][field], expected), (name, field)
    assert plain.metrics(reset=False)["osc/oscillations_per_weight"] > 0.01
    assert fast.metrics() == plain.metrics()


@HERE
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
def test_the_regularizer_has_the_same_gradient(scale_gradient: Literal["graph", "detached"]) -> None:
    for settings, bits in ((QuantizerConfig(), 2), (QuantizerConfig(), 8), (CLIPPED, 2), (CLIPPED, 4), (CHANNEL, 3)):
        model, found = network(), []
        for fused in (True, False):
            regularizer = OscillationRegularizer(model, bits, 30.0, settings, scale_gradient, fused=fused)
            for weight in weights(model):
                weight.grad = torch.full_like(weight, 2.0**-20)  # added to, and little enough to hide no difference
            left = left_over(regularizer, "add_gradient")
            value = regularizer.add_gradient()
            assert left == [0 if fused and settings is not CHANNEL else 5]
            found.append((float(value), [weight.grad for weight in weights(model)]))
        (fast, gradients), (plain, expected) = found
        assert fast == pytest.approx(plain, rel=1e-5)
        for one, other in zip(gradients, expected, strict=True):
            assert one is not None
            assert other is not None
            # fp32, but for sums over a layer, which one makes in fp64.
            assert float((one - other).norm()) <= 1e-5 * float(other.norm())
        norms = [float(gradient.norm()) for gradient in expected if gradient is not None]
        assert norms[1] > 1e-4
        assert norms[4] == pytest.approx(30**0.5 * 2**-20)  # of zeros


@HERE
@pytest.mark.parametrize("scale_gradient", ["graph", "detached"])
@pytest.mark.parametrize("settings", [QuantizerConfig(), CLIPPED], ids=["max", "mse"])
def test_fake_quantization_is_the_same(settings: QuantizerConfig, scale_gradient: Literal["graph", "detached"]) -> None:
    for bits in (2, 8):
        for weight in weights(network()):
            quantizer = make_quantizer(settings, bits, scale_gradient).fit(weight)
            results = []
            gradient = torch.randn(weight.shape).to(weight)
            for fused in (True, False):
                quantizer.fused = fused
                leaf = weight.detach().clone().requires_grad_()
                out = quantizer(leaf)
                assert (pass_of(out) == "_FakeQuantize") == fused
                out.backward(gradient)  # not in the weight's order in memory
                results.append((out.detach(), leaf.grad))
            assert torch.equal(results[0][0], results[1][0])
            # The largest weight has the sum over the layer, in fp32 of one order or another.
            torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@HERE
def test_a_weight_that_is_not_finite_shows_as_by_plain_operations() -> None:
    for value in (float("nan"), float("inf")):
        quantizer, results = make_quantizer(QuantizerConfig(), 3), []
        source = weights(network())[1].detach().clone()
        source[3, 4] = value
        for quantizer.fused in (True, False):
            leaf = source.clone().requires_grad_()
            out = quantizer(leaf)
            assert (pass_of(out) == "_FakeQuantize") == quantizer.fused
            out.sum().backward()
            results.append((out.detach(), leaf.grad))
        for by_pass, plain in zip(*results, strict=True):
            torch.testing.assert_close(by_pass, plain, equal_nan=True)


@HERE
def test_whole_numbers_halves_to_even() -> None:
    from harness.kernels.triton_layers import Layers

    weight = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 1e-30], device=DEVICE)
    quantizer = make_quantizer(QuantizerConfig(), 8)
    table, ranges = Layers([weight]), torch.tensor([[-127.0], [127.0]], device=DEVICE)
    code, direction = (torch.zeros(8, dtype=torch.int8, device=DEVICE) for _ in range(2))
    flips, oscillations = (torch.zeros((), dtype=torch.int64, device=DEVICE) for _ in range(2))
    frequency = torch.zeros(8, dtype=torch.float16, device=DEVICE)
    steps = quantizer.step_of(table.peaks([weight]))
    table.track([weight], steps, ranges, [[code], [direction], [frequency], [flips], [oscillations]], 0.01)
    assert code.tolist() == [127, 0, 2, 2, 0, -2, -126, 0] == quantizer.codes(weight).tolist()
    assert (int(flips), int(oscillations)) == (5, 0)
