"""A run's optimizer, with the parameter groups that methods ask for."""

from collections.abc import Sequence

import torch
from torch import nn

from harness.methods.base import Method
from harness.training.config import TrainConfig


def make_optimizer(knobs: TrainConfig, model: nn.Module, methods: Sequence[Method]) -> torch.optim.Optimizer:
    """The optimizer, with a parameter group for each set of options that methods ask for.

    A method's `lr` is a factor of the run's learning rate; other options replace the run's. What a method asks
    anything for is never in the group of the rest: it may have no gradient for a while, and torch's fused SGD cannot
    bear momentum that begins later within a group (seen with torch 2.15).
    """
    groups: dict[tuple[bool, tuple[tuple[str, float], ...]], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        asked = [options for method in methods if (options := method.param_options(name, parameter))]
        options = {"lr": 1.0, "weight_decay": knobs.weight_decay}
        for one in asked:
            options |= one
        groups.setdefault((bool(asked), tuple(sorted(options.items()))), []).append(parameter)
    parameters = [
        {**dict(options), "lr": knobs.learning_rate * dict(options)["lr"], "params": members}
        for (_, options), members in groups.items()
    ]
    if knobs.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=knobs.learning_rate, momentum=knobs.momentum, fused=True)
    optimizer = torch.optim.AdamW if knobs.optimizer == "adamw" else torch.optim.Adam
    return optimizer(parameters, lr=knobs.learning_rate, fused=True)
