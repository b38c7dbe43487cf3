"""The fast path (native passes, compiled network, channels-last) against `compile: off`, for every method and model."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import compilation, registry, schema
from harness.build import build
from harness.config import RunConfig, complete
from harness.methods import find
from harness.train import Session, train

METHODS = registry.names("method")
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 16},
    "resnet18": {"name": "resnet18", "width": 8},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2},
    "tiny_vit": {"name": "tiny_vit"},
}
#: Tiny ViT has 5 M weights, whatever its knobs.
MODEL_NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "tiny_vit" else []) for name in MODELS]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def config(method: str, model: str, how: str, device: str, precision: str = "fp32") -> RunConfig:
    """Six steps on digits. SGD: Adam makes a whole step of a gradient that is 0 but for rounding."""
    batch = 20 if model == "tiny_vit" else 40
    return complete(
        {
            "methods": [{**find(method).tiny_config().model_dump(), "name": method}],
            "target_bit": 3,
            "model": MODELS[model],
            "data": {"name": "digits", "train_fraction": 0.05 if model == "tiny_vit" else 0.1, "resize": 16},
            "train": {"epochs": 2, "batch_size": batch, "learning_rate": 0.05, "optimizer": "sgd"}
            | {"precision": precision},
            "deploy": {"bits": [3], "scale": "recalibrate"},
            "runtime": {"device": device, "wandb": "off", "compile": how},
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
@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("method", METHODS)
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
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_network_agrees(method: str, model: str, device: str) -> None:
    fast, fast_lines = trained(config(method, model, "on", device))
    assert fast.compiled == ("kernels" if find(method).needs_double_backward else "full")
    plain, plain_lines = trained(config(method, model, "off", device))
    # All sums run in another order; a weight at a rounding threshold may then go to the other side.
    assert distance(fast, plain) < 1e-2
    assert fast_lines[-1][schema.TRAIN_LOSS] == pytest.approx(plain_lines[-1][schema.TRAIN_LOSS], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_network_agrees_in_bf16() -> None:
    fast, fast_lines = trained(config("oscillation", "resnet18", "on", "cpu", "bf16"))
    plain, plain_lines = trained(config("oscillation", "resnet18", "off", "cpu", "bf16"))
    # bf16 holds 8 bits; compiled code rounds less often in between.
    assert fast_lines[-1][schema.TRAIN_LOSS] == pytest.approx(plain_lines[-1][schema.TRAIN_LOSS], rel=0.03)
    assert distance(fast, plain) < 0.3


def test_what_auto_comes_to() -> None:
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(2000, 1001)
    cpu, long = torch.device("cpu"), compilation.MIN_STEPS
    assert compilation.choose("off", cpu, large, long, twice=False) == "off"
    assert compilation.choose("auto", cpu, large, long - 1, twice=False) == "kernels"
    assert compilation.choose("auto", cpu, small, long, twice=False) == "kernels"
    assert compilation.choose("auto", cpu, large, long, twice=True) == "kernels"
    wanted = "full" if compilation.has_compiler(cpu) else "kernels"
    assert compilation.choose("auto", cpu, large, long, twice=False) == wanted
    assert compilation.choose("on", cpu, small, 1, twice=False) == wanted
