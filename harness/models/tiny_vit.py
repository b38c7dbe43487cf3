"""TinyViT-5M (Wu et al. 2022, arXiv 2207.10666), timm's, with attention windows cut to small images."""

from math import ceil, isqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from harness.core.errors import UserError
from harness.models._timm import create
from harness.models.base import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_TIMM_NAME = "tiny_vit_5m_224"
#: Largest window of each stage, and by how much each stage's feature map is smaller than the image.
_WINDOWS, _STRIDES = (7, 7, 14, 7), (4, 8, 16, 32)
_EMBED_DIMS, _DEPTHS, _HEAD_DIM = (64, 128, 160, 320), (2, 2, 6, 2), 32
_Four = Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=4, max_length=4)]


class Config(ModelConfig):
    """Settings of tiny_vit."""

    min_image_side: ClassVar[int] = 64

    name: str = "tiny_vit"
    embed_dims: _Four = Field(_EMBED_DIMS, description="channels of each stage, multiples of 32 after the first")
    depths: _Four = Field(_DEPTHS, description="blocks of each stage")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth: rate of the last block")

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        if any(dim % _HEAD_DIM for dim in self.embed_dims[1:]):
            raise UserError(f"model tiny_vit: embed_dims {self.embed_dims} must be multiples of 32 after the first")
        return self


def windows(side: int) -> tuple[int, ...]:
    """The attention window of each stage for images of `side` pixels: as few as TinyViT's own sizes allow.

    At 224 they are TinyViT's. timm pads a smaller feature map to the full window instead (4x4 to 14x14 at 64
    pixels), which attends to padding and costs five times the step.
    """
    maps = [ceil(side / stride) for stride in _STRIDES]
    return tuple(ceil(size / ceil(size / largest)) for size, largest in zip(maps, _WINDOWS))


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
    """The model for square images (N, C, side, side), side at least 64; `build_model` enlarges smaller ones.

    Pretrained attention biases are cut to the windows: each offset keeps its own.
    Raises UserError when images are not square or smaller, and when published weights do not fit.
    """
    _, side, other = input_shape
    if side != other or side < config.min_image_side:
        raise UserError(f"model tiny_vit needs square images of 64 pixels or more, not {side}x{other}")
    config.check_pretrained(embed_dims=_EMBED_DIMS, depths=_DEPTHS)
    settings: dict[str, Any] = {
        "embed_dims": config.embed_dims,
        "depths": config.depths,
        "num_heads": tuple(max(1, dim // _HEAD_DIM) for dim in config.embed_dims),
        "drop_path_rate": config.drop_path,
    }
    model = create(_TIMM_NAME, False, input_shape, num_classes, window_sizes=windows(side), **settings)
    if config.pretrained:
        published = create(_TIMM_NAME, True, input_shape, num_classes, **settings)
        own = model.state_dict()
        state = {key: _cut_biases(value, own[key]) for key, value in published.state_dict().items()}
        model.load_state_dict(state)
    return model


def _cut_biases(published: "Tensor", own: "Tensor") -> "Tensor":
    """Attention biases (heads, window^2), one for each offset (down, right), to those of a smaller window."""
    if published.shape == own.shape:
        return published
    large, small = isqrt(published.shape[1]), isqrt(own.shape[1])
    return published.unflatten(1, (large, large))[:, :small, :small].flatten(1)
