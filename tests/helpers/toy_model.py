"""The one-dimensional model of oscillation: `L = (q(w) - w*)^2 / 2`, step 1, many weights side by side.

By plain gradient descent, straight through: at distance d = |w* - q(w*)| a weight oscillates in 2 d of all steps.
"""

from collections.abc import Sequence

import torch
from quantizers_common import lsq_at
from torch import Tensor, nn

from harness.methods.base import Calibration, Method, Step
from harness.quantization.layers import QuantLayer, attach

NO_DATA = Calibration(lambda index: (torch.zeros(0), torch.zeros(0)))


class Toy:
    """One layer whose weights (N, 1) each have a target of their own, on 4 bits with step 1."""

    def __init__(self, targets: Sequence[float], start: float) -> None:
        self.targets = torch.tensor(targets)[:, None]
        self.model = nn.Sequential(nn.Linear(1, len(targets), bias=False))
        layer = attach(self.model, weight_quantizer=lambda layer: lsq_at(1.0, 4))["0"]
        self.layer: QuantLayer = layer
        layer.weight_quantizer.learned_step.requires_grad_(False)  # type: ignore[union-attr, operator]
        with torch.no_grad():
            layer.weight.fill_(start)

    def train(self, methods: Sequence[Method], steps: int, rate: float, total: int | None = None) -> Tensor:
        """The codes after each step, (steps, N). total: what methods are told; by default `steps`."""
        for method in methods:
            method.prepare(self.model, NO_DATA)
        optimizer, history = torch.optim.SGD([self.layer.weight], lr=rate), []
        for index in range(steps):
            now = Step(index, steps if total is None else total, self.model)
            for method in methods:
                method.on_step_start(now)
            loss = 0.5 * (self.layer.quantized_weight() - self.targets).square().sum()
            optimizer.zero_grad()
            (loss + sum(method.penalty(now) for method in methods)).backward()
            for method in methods:
                method.after_backward(now)
            optimizer.step()
            for method in methods:
                method.after_step(now)
            history.append(self.layer.quantized_weight().detach().flatten())
        return torch.stack(history)


def flip_rate(codes: Tensor) -> Tensor:
    """The fraction of steps in which each weight's code changed, (N,), from codes (steps, N)."""
    return (codes[1:] != codes[:-1]).float().mean(0)
