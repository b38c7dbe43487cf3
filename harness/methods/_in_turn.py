"""The layers of a network one after the other, for methods that deploy it so."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.core.layer_points import AnyPoint
from harness.methods.base import Calibration, Context
from harness.quantization.deploy import Choice, choices
from harness.quantization.layer_inputs import inputs_of, order_of_calls
from harness.quantization.layers import QuantLayer


@dataclass(frozen=True)
class Turn:
    """A layer that is to be rounded now. images: those of calibration; calls: of the layer in one forward pass."""

    name: str
    choice: Choice
    images: Tensor
    calls: int

    @property
    def layer(self) -> QuantLayer:
        """The layer, with slots."""
        return self.choice.layer

    def weight(self) -> Tensor:
        """Its effective weight, without a graph."""
        with torch.no_grad():
            return self.layer.effective_weight().detach()

    def inputs(
        self, network: nn.Module, layer: QuantLayer | None = None, through: nn.Module | None = None
    ) -> Iterator[Tensor]:
        """What it gets in a network, as `inputs_of` gives it; layer: the same one in a copy of the network."""
        return inputs_of(network, layer or self.layer, self.images, self.calls, through)


def in_turn(
    model: nn.Module, point: AnyPoint, context: Context, calibration: Calibration, images: int
) -> Iterator[Turn]:
    """The layers that a point rounds, in the order in which the network calls them; one never called is left out.

    images: how many of calibration are used. The caller deploys each layer before it asks for the next one.
    """
    found = choices(model, point, context.scale, context.quantizer, context.exclude)
    if not found:
        return
    inputs = calibration.images(images)
    layers = {name: choice.layer for name, choice in found.items()}
    for name, calls in order_of_calls(model, layers, inputs[:1]).items():
        yield Turn(name, found[name], inputs, calls)
