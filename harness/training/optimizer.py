"""A run's optimizer, with the parameter groups that methods ask for.

torch's fused optimizers walk parameters, gradients and averages in order of memory on CPUs: where one has another
layout, each weight would get the gradient of another one, without a word (seen with torch 2.15).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.training.config import TrainConfig


def make_optimizer(settings: TrainConfig, model: nn.Module, methods: Sequence[Method]) -> torch.optim.Optimizer:
    """The optimizer, with a parameter group for each set of options that methods ask for.

    A method's `lr` is a factor of the run's learning rate; other options replace the run's. What a method asks
    anything for is never in the group of the rest: it may have no gradient for a while, and torch's fused SGD does not
    allow momentum that begins later within a group (seen with torch 2.15).
    """
    groups: dict[tuple[bool, tuple[tuple[str, float], ...]], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        asked = [options for method in methods if (options := method.param_options(name, parameter))]
        options = {"lr": 1.0, "weight_decay": settings.weight_decay}
        for one in asked:
            options |= one
        groups.setdefault((bool(asked), tuple(sorted(options.items()))), []).append(parameter)
    parameters = [
        {**dict(options), "lr": settings.learning_rate * dict(options)["lr"], "params": group}
        for (_, options), group in groups.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum, fused=True)
    optimizer = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return optimizer(parameters, lr=settings.learning_rate, fused=True)


def match_gradients(model: nn.Module) -> None:
    """Gradients in their parameters' layout, which autograd sees to, but a method may not have."""
    for parameter in model.parameters():
        if parameter.grad is not None and _differs(parameter.grad, parameter):
            parameter.grad = _in_layout_of(parameter, parameter.grad)


def match_states(optimizer: torch.optim.Optimizer) -> None:
    """Averages in their parameters' layout, which a checkpoint of another layout does not have."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and _differs(value, parameter):
                state[name] = _in_layout_of(parameter, value)


def _differs(value: Tensor, parameter: Tensor) -> bool:
    return value.stride() != parameter.stride()


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(value)
