"""What the tests of any-precision networks share: networks, a step without the loop, and formulas by hand."""

from collections.abc import Callable
from typing import Any

import torch
from test_dampening import run_config
from torch import Tensor, nn
from torch.nn import functional
from toy_model import NO_DATA

from harness.core.bits import Bits
from harness.core.config_base import QuantizerConfig
from harness.methods._switching import SwitchedNorm
from harness.methods.any_precision import AnyPrecision
from harness.methods.base import Context, Step
from harness.training.build import build
from harness.training.session import Session

RESNET = {"name": "resnet18", "width": 4}
VIT = {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 3),
    ).double()


def method(
    target: int = 3, exclude: tuple[str, ...] = (), granularity: Any = "tensor", **settings: Any
) -> AnyPrecision:
    quantizer = QuantizerConfig(granularity=granularity)
    context = Context(target_bit=target, exclude=exclude, quantizer=quantizer)
    return AnyPrecision(AnyPrecision.Config(**settings), context)


def prepared(model: nn.Module, target: int = 3, **settings: Any) -> AnyPrecision:
    own = method(target, **settings)
    own.prepare(model, NO_DATA)
    return own


def switched(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SwitchedNorm)}


def of_width(norm: Any, width: Bits, target: int = 3) -> nn.Module:
    """The layer that holds a bit-width's parameters and statistics."""
    result: nn.Module = norm if width == target else norm.other_widths[f"w{width}"]
    return result


def unlike(model: nn.Module) -> None:
    """Give all norms of all bit-widths parameters of their own."""
    torch.manual_seed(5)
    for norm in switched(model).values():
        for name, parameter in norm.named_parameters():
            nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)


def by_hand(weight: Tensor, bits: Bits) -> Tensor:
    """The released code's weight, straight through."""
    mean, bounded = weight.abs().mean().detach(), weight.tanh()
    bounded = bounded / bounded.abs().max()
    if not isinstance(bits, int):
        return bounded * mean
    top, unit = 2**bits - 1, bounded / 2 + 0.5
    return mean * (2 * (unit + ((unit * top).round() / top - unit).detach()) - 1)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(12, 2, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (12,), generator=generator)


def one_step(
    own: AnyPrecision,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor] | None = None,
    given: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """The loop's part of a step up to the gradient."""
    now = Step(0, 1, model)
    own.on_step_start(now)
    now.inputs, now.targets = given or batch()
    now.forward = forward or model
    now.outputs = model(now.inputs)
    now.task_loss = functional.cross_entropy(now.outputs, now.targets)
    (now.task_loss + own.penalty(now)).backward()
    return now


def soft(logits: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher.detach().softmax(1) * logits.log_softmax(1)).sum(1).mean()


def session_of(methods: list[Any], model: dict[str, Any] | None = None, **more: Any) -> Session:
    return build(run_config(methods, model or RESNET, **more))


def set_norms(model: nn.Module, width: Bits, into: Bits) -> None:
    """Use one bit-width's norms at another."""
    for norm in switched(model).values():
        state = {k: v for k, v in of_width(norm, width).state_dict().items() if "other_widths" not in k}
        of_width(norm, into).load_state_dict(state, strict=False)
