"""The optimizer of a run, with the parameter groups that methods request.

On CPUs, torch's fused optimizers read parameters, gradients and averages in memory order. If one of them has another
layout, weights silently get the gradients of other weights (seen with torch 2.15).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.training.sections import TrainConfig


class NoOptimizer(torch.optim.Optimizer):
    """Of a session that takes no step. The first real optimizer of a process imports torch's compiler: a second."""

    def __init__(self) -> None:
        self.param_groups = []


def make_optimizer(settings: TrainConfig, model: nn.Module, methods: Sequence[Method]) -> torch.optim.Optimizer:
    """The optimizer, with one parameter group per set of options that methods request.

    A method's `lr` is a factor of the run's learning rate; other options replace the run's. Parameters with options of
    a method never share a group with others: they may have no gradient at first, and torch's fused SGD does not support
    momentum that begins later for part of a group (seen with torch 2.15).
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


def match_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give the gradient of each parameter that the optimizer has the memory layout of the parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def match_states(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's averages, after loading a checkpoint, the memory layout of their parameters."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
