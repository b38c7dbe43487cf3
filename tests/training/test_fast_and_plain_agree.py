"""The fast path (native passes, compiled network, channels-last) against `compile: off`, for every method and model."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core import outside, registry
from harness.core.errors import Stopped
from harness.methods import find
from harness.methods.base import Method
from harness.records import schema
from harness.training import compilation
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import forward_context, train
from harness.training.run import RunContext, run
from harness.training.session import Session

METHODS = registry.names("method")
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 16},
    "resnet18": {"name": "resnet18", "width": 8},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2},
    # Every kind of layer that Tiny ViT has, once; its own 5 M weights take ten times as long.
    "tiny_vit": {"name": "tiny_vit", "embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1)},
}
#: The models that have what methods require.
HAVE = {"attention": {"vit_tiny", "tiny_vit"}, "norms": {"resnet18", "vit_tiny", "tiny_vit"}}
#: Convolutions, batch norms and a shortcut, compiled in seconds: a ResNet-18 takes a core one to two minutes.
SMALL_CNN = {"name": outside.resolve("model", "compiled_cnn.py:CompiledCNN", Path(__file__).parents[1] / "helpers")}
#: What a method may change of training.
HOOKS = ("prepare", "prepared", "param_options", "on_step_start", "penalty", "after_backward", "after_step")
HOOKS += ("needs_double_backward", "selection_start")


def trains(method: str) -> bool:
    """Whether it has a part in training: what acts at deployment alone trains as `none` does, by the same code."""
    return method == "none" or any(getattr(find(method), hook) is not getattr(Method, hook) for hook in HOOKS)


def models_for(method: str) -> list[str]:
    """Those that have what it requires, or the first of them: its code has no part in the comparison."""
    fitting = [model for model in MODELS if all(model in HAVE[it] for it in find(method).requires)]
    return fitting if trains(method) else fitting[:1]


def compiled_with(method: str) -> str:
    """The cheapest network that has what a method requires."""
    required = find(method).requires
    return "vit_tiny" if "attention" in required else "small_cnn" if required else "mlp5"


PAIRS = [(method, model) for method in METHODS for model in models_for(method)]
NEIGHBOURS = list(itertools.pairwise([("", ""), *PAIRS]))
#: Every method once and every model once; learned steps of convolutions, too.
COMPILED = [(method, compiled_with(method)) for method in METHODS if trains(method)]
COMPILED += [*(("ste", model) for model in MODELS if model != compiled_with("ste")), ("lsq", "small_cnn")]
#: Compiling takes 5 to 60 s, several times as much where other tests compile beside it.
COMPILES = pytest.mark.timeout(1200)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def config(method: str, model: str, how: str, device: str, precision: str = "fp32") -> RunConfig:
    """Six steps on digits. SGD: Adam makes a whole step of a gradient that is 0 but for rounding.

    One step of Tiny ViT: of 5 M weights, some were an ulp from a threshold; a code that flips moves all that follows.
    Two of a ResNet by lcq, whose gradients all differ by an ulp: an ulp of its first weights moves six steps of plain
    training by 6 to 70 %, by any method (tests/kernels/test_native_companding.py compares longer trainings).
    """
    epochs, batch = (1, 60) if model == "tiny_vit" or (method, model) == ("lcq", "resnet18") else (2, 40)
    return complete(
        {
            "methods": [{**find(method).tiny_config().model_dump(), "name": method}],
            "target_bit": 3,
            "model": SMALL_CNN if model == "small_cnn" else MODELS[model],
            "data": {"name": "digits", "train_fraction": 0.05 if model == "tiny_vit" else 0.1, "resize": 16},
            "train": {"epochs": epochs, "batch_size": batch, "learning_rate": 0.05, "optimizer": "sgd"}
            | {"precision": precision},
            "deploy": {"bits": [3], "scale": "recalibrate"},
            # On a GPU some sums of cuDNN's come out another way each time, and a code that flips makes much of it.
            "runtime": {"device": device, "wandb": "off", "compile": how, "deterministic": device == "cuda"},
        }
    )


def trained(wanted: RunConfig) -> tuple[Session, Sequence[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    session = build(wanted)
    train(session, lines.append)
    return session, lines


def distance(one: Session, other: Session) -> float:
    """Of all parameters, relative to how far training moved them."""
    start = torch.cat([p.detach().flatten() for p in build(one.config).model.parameters()])
    ends: list[Tensor] = [torch.cat([p.detach().flatten() for p in s.model.parameters()]) for s in (one, other)]
    return float((ends[0] - ends[1]).norm() / (ends[0] - start).norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("method", "model"),  # the first model of each method in the default suite, the others with the slow tests
    [pytest.param(*pair, marks=() if before[0] != pair[0] else pytest.mark.slow) for before, pair in NEIGHBOURS],
)
def test_native_passes_agree(method: str, model: str, device: str) -> None:
    fast, fast_lines = trained(config(method, model, "auto", device))
    plain, plain_lines = trained(config(method, model, "off", device))
    assert (fast.compiled, plain.compiled) == ("kernels", "off")
    # The gradient of each layer's largest weight is summed in another order: an ulp that six steps hand on. 1e-6 seen.
    assert distance(fast, plain) < 1e-4
    for one, other in zip(fast_lines, plain_lines, strict=True):
        assert one[schema.TRAIN_LOSS] == pytest.approx(other[schema.TRAIN_LOSS], rel=1e-4)
        assert one[schema.TRAIN_PENALTY] == pytest.approx(other[schema.TRAIN_PENALTY], rel=1e-3, abs=1e-6)


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("method", "model"), COMPILED)
def test_a_compiled_network_agrees(method: str, model: str, device: str) -> None:
    """In float64: in fp32 one activation at a ReLU's or a quantizer's threshold moves gradients by 2 % (seen)."""
    session = build(config(method, model, "off", device))
    network = session.model.train().double()
    inputs, labels = session.dataset.train_batch(torch.arange(20, device=device))
    buffers = {name: value.clone() for name, value in network.state_dict().items()}
    results = []
    compiled = compilation.CompiledNetwork(network, torch.device(device))
    for forward in (network, compiled):
        network.load_state_dict(buffers)
        network.zero_grad()
        with forward_context(session):
            logits = forward(inputs.double())
        torch.nn.functional.cross_entropy(logits, labels).backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        results.append({**gradients, **{k: v.clone() for k, v in network.state_dict().items()}, "logits": logits})
    assert not compiled.failed
    for name, expected in results[0].items():
        # Relative in norm. timm computes some things in fp32 whatever it is given: 4e-8 seen.
        off = (results[1][name].double() - expected.double()).norm()
        assert off <= 1e-6 * expected.double().norm() + 1e-12, name


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize(("model", "precision"), [("small_cnn", "fp32"), ("vit_tiny", "bf16")])
def test_a_compiled_run_learns_alike(model: str, precision: str) -> None:
    fast, fast_lines = trained(config("oscillation", model, "on", "cpu", precision))
    assert fast.compiled == "full"
    _, plain_lines = trained(config("oscillation", model, "off", "cpu", precision))
    # bf16 holds 8 bits, and compiled code rounds less often in between.
    limit = {"fp32": 1e-5, "bf16": 0.01}[precision]
    assert fast_lines[-1][schema.TRAIN_LOSS] == pytest.approx(plain_lines[-1][schema.TRAIN_LOSS], rel=limit)


def test_what_auto_comes_to() -> None:
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(2000, 1001)
    cpu, long = torch.device("cpu"), compilation.MIN_STEPS["cpu"]
    assert compilation.choose("off", cpu, large, long, twice=False) == "off"
    assert compilation.choose("auto", cpu, large, long - 1, twice=False) == "kernels"
    assert compilation.choose("auto", cpu, small, long, twice=False) == "kernels"
    assert compilation.choose("auto", cpu, large, long, twice=True) == "kernels"
    wanted = "full" if compilation.has_compiler(cpu) else "kernels"
    assert compilation.choose("auto", cpu, large, long, twice=False) == wanted
    assert compilation.choose("on", cpu, small, 1, twice=False) == wanted


def test_a_network_that_cannot_be_compiled_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **options: object) -> Callable[..., Tensor]:
        def fail(inputs: Tensor) -> Tensor:
            raise RuntimeError("no working compiler")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compilation, "has_compiler", lambda device: True)
    session = build(config("ste", "mlp5", "on", "cpu"))
    assert session.compiled == "full"
    with pytest.warns(UserWarning, match="could not be compiled.*no working compiler"):
        train(session, lambda metrics: None)
    assert session.compiled == "kernels"
    usual, _ = trained(config("ste", "mlp5", "auto", "cpu"))
    for name, value in usual.model.state_dict().items():
        assert torch.equal(session.model.state_dict()[name], value), name


def test_an_error_of_the_model_itself_is_not_hidden() -> None:
    network = compilation.CompiledNetwork(torch.nn.Linear(3, 2), torch.device("cpu"))
    with pytest.warns(UserWarning, match="could not be compiled"), pytest.raises(RuntimeError, match="shapes"):
        network(torch.zeros(2, 5))


@pytest.mark.slow
@COMPILES
def test_a_compiled_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    wanted = config("lsq", "small_cnn", "on", "cpu")
    whole = run(wanted, tmp_path / "whole")
    left = iter([False] * 4)
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "parts", RunContext(should_stop=lambda: next(left, True)))
    parts = run(wanted, tmp_path / "parts")
    assert whole["resolved"]["compiled"] == "full"
    assert parts["rows"] == whole["rows"]
    assert (tmp_path / "parts/best.safetensors").read_bytes() == (tmp_path / "whole/best.safetensors").read_bytes()
