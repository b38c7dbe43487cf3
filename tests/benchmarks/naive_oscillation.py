"""Regularizer and tracker as one writes them first: the loss by autograd, the tracker in plain tensor operations."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.methods.base import Context, Method, Step
from harness.quantization.layers import weight_layers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

from plain_oscillation_loss import plain_loss


class NaiveRegularizer(Method):
    """The sum of the plain losses of all layers, in the graph of the task loss."""

    def __init__(self, model: nn.Module, bits: int, strength: float) -> None:
        super().__init__(None, Context())
        self.layers, self.bits, self.strength = list(weight_layers(model).values()), bits, strength

    def penalty(self, step: Step) -> Tensor | float:
        """R over all layers."""
        total: Tensor | float = 0.0
        for layer in self.layers:
            total = total + plain_loss(layer.weight, self.bits, self.strength)
        return total


class NaiveTracker:
    """Codes and directions as int32, frequencies as fp32, a chain of comparisons a layer."""

    def __init__(self, model: nn.Module, bits: int, momentum: float = 0.01) -> None:
        self.layers, self.high, self.momentum = list(weight_layers(model).values()), 2 ** (bits - 1) - 1, momentum
        self.codes = [self._codes(layer.weight) for layer in self.layers]
        self.directions = [torch.zeros_like(codes) for codes in self.codes]
        self.frequencies = [torch.zeros_like(codes, dtype=torch.float32) for codes in self.codes]
        self.flips = [torch.zeros((), dtype=torch.int64, device=codes.device) for codes in self.codes]
        self.oscillations = [torch.zeros_like(flips) for flips in self.flips]

    @torch.no_grad()
    def _codes(self, weight: Tensor) -> Tensor:
        step = weight.abs().max() / self.high
        return torch.round(weight / step).clamp(-self.high, self.high).int()

    @torch.no_grad()
    def update(self) -> None:
        """Compare the weights with those at the last update."""
        for index, layer in enumerate(self.layers):
            codes = self._codes(layer.weight)
            change = torch.sign(codes - self.codes[index])
            changed = change != 0
            oscillated = changed & (self.directions[index] != 0) & (change != self.directions[index])
            self.flips[index] += changed.sum()
            self.oscillations[index] += oscillated.sum()
            kept = (1 - self.momentum) * self.frequencies[index]
            self.frequencies[index] = self.momentum * oscillated.float() + kept
            self.directions[index] = torch.where(changed, change, self.directions[index])
            self.codes[index] = codes
