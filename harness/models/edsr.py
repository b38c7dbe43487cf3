"""EDSR (Lim et al. 2017, arXiv 1707.02921): residual blocks without norms, then sub-pixel enlargement by 2, 3 or 4.

The defaults are the paper's baseline, 16 blocks of 64 features; its large network has 32 blocks of 256 features and
`residual_scale: 0.1`. The mean that is taken off the inputs and added to the outputs is the released code's (DIV2K).
"""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from harness.core.errors import UserError
from harness.models.base import TaskModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Red, green and blue.
MEAN = (0.4488, 0.4371, 0.4040)


class Config(TaskModelConfig):
    """Settings of edsr."""

    tasks: ClassVar[tuple[str, ...]] = ("super_resolution",)
    name: str = "edsr"
    blocks: int = Field(16, ge=1, le=256, description="residual blocks (paper: 16, large: 32)")
    features: int = Field(64, ge=1, le=4096, description="channels of every block (paper: 64, large: 256)")
    residual_scale: float = Field(1.0, gt=0, le=1, description="factor of a block's branch (paper: 1, large: 0.1)")

    @model_validator(mode="after")
    def _nothing_is_published(self) -> Self:
        if self.pretrained:
            raise UserError("init: there are no pretrained weights of edsr (legal: scratch, checkpoint:<path>)")
        return self


def build(config: Config, input_shape: tuple[int, ...], outputs: int) -> "nn.Module":
    """The model for images (N, C, h, w), C 1 or 3, of any size. outputs: the factor of enlargement, 2, 3 or 4."""
    import torch
    from torch import nn

    def conv(inputs: int, to: int) -> nn.Module:
        return nn.Conv2d(inputs, to, 3, padding=1)

    class Block(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.conv1, self.relu, self.conv2 = conv(features, features), nn.ReLU(), conv(features, features)

        def forward(self, x: "Tensor") -> "Tensor":
            branch: Tensor = self.conv2(self.relu(self.conv1(x)))
            return x + config.residual_scale * branch

    class Network(nn.Module):
        mean: "Tensor"

        def __init__(self, channels: int, features: int) -> None:
            super().__init__()
            mean = MEAN if channels == 3 else (sum(MEAN) / 3,) * channels
            self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
            self.head = conv(channels, features)
            self.body = nn.Sequential(*(Block(features) for _ in range(config.blocks)), conv(features, features))
            steps: list[nn.Module] = []
            for factor in (2, 2) if outputs == 4 else (outputs,):
                steps += [conv(features, factor**2 * features), nn.PixelShuffle(factor)]
            self.enlarge = nn.Sequential(*steps)
            self.tail = conv(features, channels)

        def forward(self, inputs: "Tensor") -> "Tensor":
            x = self.head(inputs - self.mean)
            found: Tensor = self.tail(self.enlarge(x + self.body(x))) + self.mean
            return found

    return Network(input_shape[0], config.features)
