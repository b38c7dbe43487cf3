"""The native passes of companding against autograd through plain operations: values and codes to the last bit."""

import copy
import shutil
from typing import Any

import pytest
import torch
from companding_common import shaped
from native_penalties_common import MEMORY, SHAPES, normal
from passes_common import pass_of
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.kernels import dispatch
from harness.methods.base import Context
from harness.methods.lcq import LearnedCompanding
from harness.quantization import CompandingQuantizer
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")

NAMES = ("weight", "range", "curve")


def computed(quantizer: CompandingQuantizer, weight: Tensor, fused: bool) -> tuple[Tensor, ...]:
    """The value, the codes, and the gradients of the weight, the range and the curve."""
    quantizer.fused = fused
    leaf = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value, upstream = quantizer(leaf), normal(tuple(weight.shape), seed=5).to(weight.dtype)
    assert (pass_of(value) == "_Companded") == fused
    assert quantizer.log_slopes is not None
    ends = leaf, quantizer.learned_range, quantizer.log_slopes
    return value.detach(), quantizer.codes(weight), *torch.autograd.grad((value * upstream).sum(), ends)


def both_ways(quantizer: CompandingQuantizer, weight: Tensor) -> list[tuple[Tensor, ...]]:
    return [computed(quantizer, weight, fused) for fused in (True, False)]


def off(one: Tensor, other: Tensor) -> float:
    """Relative in norm."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_it_is_that_of_plain_operations(bits: int, channel: bool, normalize: bool, memory: str) -> None:
    for number, shape in enumerate(SHAPES):
        weight = 0.3 * normal(shape, memory)
        # 16 intervals and few bits: places that fit into two vectors; others go by tables.
        settings = {"per_channel": channel, "normalize": normalize, "start": 1.6, "intervals": (16, 5, 64)[number % 3]}
        for size in (0.0, 1.0):
            native, plain = both_ways(shaped(bits, weight, seed=bits, size=size, **settings), weight)
            assert torch.equal(native[0].view(torch.int32), plain[0].view(torch.int32)), "signs of zeros, too"
            assert torch.equal(native[1], plain[1])
            assert native[2].stride() == weight.stride()
            assert off(native[2], plain[2]) < 1e-6
            assert off(native[3], plain[3]) < 1e-4
            # Sums of what mostly cancels, in fp64 here and in fp32 there.
            torch.testing.assert_close(native[4], plain[4], rtol=1e-3, atol=1e-4 * float(1 + plain[4].abs().max()))


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_plain_sums_are_the_ones_that_are_off(bits: int, channel: bool) -> None:
    """By plain operations in fp64, from the same fp32 numbers."""
    weight = 0.3 * normal((301, 170))
    quantizer = shaped(bits, weight, per_channel=channel, normalize=False, start=0.4, size=2.0)
    native, plain = both_ways(quantizer, weight)
    exact = computed(copy.deepcopy(quantizer).double(), weight.double(), fused=False)
    assert torch.equal(exact[1], plain[1])
    for place in (2, 3, 4):
        mine, theirs = off(native[place], exact[place]), off(plain[place], exact[place])
        assert mine < max(1e-5, 1.1 * theirs), NAMES[place - 2]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("channel", "shape"), [(False, (7, 1301)), (True, (3, 5000)), (True, (2, 4096, 2))])
def test_gradients_in_bf16_are_summed_as_the_same_ones_in_fp32(
    bits: int, channel: bool, shape: tuple[int, ...]
) -> None:
    """Long enough for sums over pairs of neighbours, with a remainder; both against sums in fp64 by autograd."""
    weight = 0.3 * normal(shape)
    quantizer = shaped(bits, weight, per_channel=channel, start=1.1, size=1.0)
    upstream = normal(shape, seed=5).bfloat16()

    def gradients(up: Tensor, fused: bool, like: CompandingQuantizer, w: Tensor) -> tuple[Tensor, ...]:
        like.fused, leaf = fused, w.clone().requires_grad_()
        value = like(leaf, bf16=up.dtype == torch.bfloat16)
        assert like.log_slopes is not None
        return torch.autograd.grad(value, (leaf, like.learned_range, like.log_slopes), up)

    halves, whole = (gradients(up, True, quantizer, weight) for up in (upstream, upstream.float()))
    exact = gradients(upstream.double(), False, copy.deepcopy(quantizer).double(), weight.double())
    for one, same, true in zip(halves, whole, exact, strict=True):
        assert torch.equal(one, same)
        assert off(one, true) < 1e-5


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_each_side_of_every_bound(bits: int) -> None:
    """The weights next to it, ulp by ulp: where codes change, at knots, and at the end of the range."""
    quantizer, high = shaped(bits, normal((9, 9)), seed=bits, normalize=False), 2 ** (bits - 1) - 1
    quantizer.learned_range = nn.Parameter(torch.tensor(1.0))
    grid = torch.linspace(0, 1, 20_001)
    low, up = grid[:-1][quantizer.codes(grid).diff() > 0], grid[1:][quantizer.codes(grid).diff() > 0]
    assert len(low) == high, "each code changes between two of the grid"
    below = quantizer.codes(low)
    for _ in range(40):
        middle = (low + up) / 2
        same = quantizer.codes(middle) == below
        low, up = torch.where(same, middle, low), torch.where(same, up, middle)
    step = quantizer.step(grid).detach()
    edges = torch.cat([low, up, step * quantizer.compressor().inputs.detach(), step * torch.tensor([high + 1e-4])])
    near = (edges.view(torch.int32)[:, None] + torch.arange(-6, 7, dtype=torch.int32)).clamp(min=0).view(torch.float32)
    native, plain = both_ways(quantizer, torch.cat([near, -near]))
    assert len(plain[1].unique()) == 2 * high + 1
    assert torch.equal(native[0], plain[0])
    assert torch.equal(native[1], plain[1])
    torch.testing.assert_close(native[2], plain[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channel", [False, True])
def test_zeros_bounds_and_what_is_no_number(channel: bool) -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -1.0], [1 + 1e-6, 1.01, -2.0, 1 / 6], [1e-30, -0.5, 0.5, 1e30]])
    quantizer = CompandingQuantizer(3, channel, normalize=False).fit(weight)
    quantizer.learned_range = nn.Parameter(torch.ones(3, 1) if channel else torch.tensor(1.0))
    native, plain = both_ways(quantizer, weight)
    assert torch.equal(native[0], plain[0])
    torch.testing.assert_close(native[2], plain[2], rtol=1e-6, atol=0)
    weight[1, 2], weight[2, 0] = torch.nan, torch.inf
    native, plain = both_ways(quantizer, weight)
    assert torch.equal(native[0].isnan(), plain[0].isnan())
    assert torch.equal(native[0].nan_to_num(), plain[0].nan_to_num())


@pytest.mark.parametrize("channel", [False, True])
def test_equal_weights_have_a_deviation_of_one(channel: bool) -> None:
    weight = torch.cat([torch.full((2, 7), 0.1), torch.zeros(1, 7)]) if channel else torch.full((5, 7), 0.1)
    native, plain = both_ways(CompandingQuantizer(3, channel).fit(weight), weight)
    for one, other in zip(native, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_threads_change_nothing() -> None:
    before, results = torch.get_num_threads(), []
    weight = normal((301, 170))
    quantizer = shaped(3, weight)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(computed(quantizer, weight, fused=True))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, same) for one, same in zip(results[0], other, strict=True))


def test_what_the_passes_do_not_serve_is_served_by_plain_operations() -> None:
    def by_native_passes(quantizer: CompandingQuantizer, weight: Tensor) -> bool:
        return pass_of(quantizer(weight)) == "_Companded"

    weight = normal((40, 30))
    assert by_native_passes(shaped(3, weight), weight.requires_grad_())
    for other in (normal((40, 30)).t(), normal((40, 30)).double(), normal((40, 30))[:, ::2]):
        assert not by_native_passes(shaped(3, other), other.requires_grad_())
    assert not by_native_passes(shaped(3, weight.detach(), intervals=65), weight)


def test_it_can_be_differentiated_twice() -> None:
    second = []
    for fused in (True, False):
        weight = normal((6, 50)).requires_grad_()
        quantizer = shaped(3, weight.detach())
        quantizer.fused = fused
        (gradient,) = torch.autograd.grad(quantizer(weight).pow(3).sum(), weight, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-4)
    assert float(second[0].norm()) > 0


@pytest.mark.parametrize("fused", [True, False])
def test_the_switch_of_the_run_reaches_the_quantizers(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(30, 20))
    method = LearnedCompanding(LearnedCompanding.Config(), Context(target_bit=3, fused=fused))
    method.prepare(model, NO_DATA)
    asked: list[Any] = []
    known = dispatch.serves
    monkeypatch.setattr(dispatch, "serves", lambda *given, **more: asked.append(given[0]) or known(*given, **more))
    model(torch.zeros(2, 30))
    assert bool(asked) == fused
    assert all(layer.weight_quantizer.at_bits(4, "keep_range").fused == fused for layer in (model[0],))


def settings(model: dict[str, Any], how: str, epochs: int) -> RunConfig:
    return complete(
        {
            "methods": "lcq",
            "target_bit": 3,
            "model": model,
            "data": {"name": "digits", "train_fraction": 0.1, "resize": 16},
            "train": {
                "epochs": epochs,
                "batch_size": 40,
                "learning_rate": 0.05,
                "optimizer": "sgd",
                "precision": "fp32",
            },
            "deploy": {"bits": [3], "scale": "recalibrate"},
            "runtime": {"device": "cpu", "wandb": "off", "compile": how},
        }
    )


MODELS = [{"name": "mlp5", "width": 32}, {"name": "resnet18", "width": 4}]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_gradients_agree_in_each_step_of_a_training(model: dict[str, Any]) -> None:
    """From the same weights, which the plain path moves: logits to the last bit."""
    session = build(settings(model, "off", 4))
    quantizers = [each for each in session.model.modules() if isinstance(each, CompandingQuantizer)]
    for indices in torch.arange(120).split(40) * 3:
        inputs, labels = session.dataset.train_batch(indices)
        buffers = {name: value.clone() for name, value in session.model.named_buffers()}
        found = []
        for fused in (True, False):
            for quantizer in quantizers:
                quantizer.fused = fused
            for name, value in buffers.items():
                session.model.get_buffer(name).copy_(value)
            session.optimizer.zero_grad()
            logits = session.model(inputs)
            nn.functional.cross_entropy(logits, labels).backward()
            found.append((logits.detach(), {name: p.grad for name, p in session.model.named_parameters()}))
        (logits, native), (wanted, plain) = found
        assert torch.equal(logits, wanted)
        for name, gradient in plain.items():
            # Of ranges and curves, sums of what cancels: relative to the largest of their kind.
            kind = name.rpartition(".")[2]
            size = max(float(other.norm()) for each, other in plain.items() if each.rpartition(".")[2] == kind)
            least = 0.0 if kind == "weight" else 0.01 * size
            assert (native[name] - gradient).norm() <= 1e-4 * max(float(gradient.norm()), least), name
        session.optimizer.step()
        for quantizer in quantizers:
            quantizer.project()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_a_long_training_departs_no_more_than_after_an_ulp(model: dict[str, Any]) -> None:
    """Gradients that differ in their last digits move a training as one ulp of its first weights does, and no more.

    A code, or an activation's sign, that flips moves all that follows: 6 to 70 % within six steps of a small ResNet,
    by any method, float training too. So the plain path is compared with itself.
    """

    def trained(how: str, moved: int | None = None) -> tuple[list[float], Tensor]:
        session, lines = build(settings(model, how, 12)), []
        for parameter in session.model.parameters() if moved is not None else ():
            up = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(moved or 0)) < 0.5
            parameter.data = torch.nextafter(parameter.data, torch.where(up, torch.inf, -torch.inf))
        train(session, lambda metrics: lines.append(metrics["train/loss"]))
        return lines, torch.cat([p.detach().flatten() for p in session.model.parameters()])

    plain, native, others = trained("off"), trained("auto"), [trained("off", seed) for seed in range(2)]
    for place in (0, 1):
        apart = [float((torch.as_tensor(each[place]) - torch.as_tensor(plain[place])).norm()) for each in others]
        mine = float((torch.as_tensor(native[place]) - torch.as_tensor(plain[place])).norm())
        assert mine <= 2 * max(apart), (mine, apart)
