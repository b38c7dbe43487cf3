"""A multilayer perceptron: linear layers and ReLU, no normalisation.

`hidden: [256, 128]` is the network of the notebook released with arXiv 2502.00490; five layers are this harness' own.
"""

from collections import OrderedDict
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from harness.core.errors import UserError
from harness.models.base import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class Config(ModelConfig):
    """Settings of mlp5."""

    name: str = "mlp5"
    depth: int = Field(5, ge=1, le=64, description="linear layers, the classifier included")
    width: int = Field(256, ge=1, le=65536, description="units of each hidden layer")
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] | None = Field(
        None, description="units of each hidden layer in turn, in place of depth and width: [256, 128]"
    )

    @model_validator(mode="after")
    def _nothing_is_published(self) -> Self:
        if self.pretrained:
            raise UserError("init: there are no pretrained weights of mlp5 (legal: scratch, checkpoint:<path>)")
        return self


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
    """The model for images (N, C, H, W), with PyTorch's default initialisation."""
    from torch import nn

    hidden = config.hidden if config.hidden is not None else (config.width,) * (config.depth - 1)
    sizes = (prod(input_shape), *hidden, num_classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"layer{number}"] = nn.Linear(inputs, outputs)
        if number < len(sizes) - 1:
            layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)
