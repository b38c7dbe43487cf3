"""ViT-Tiny (Dosovitskiy et al. 2021, arXiv 2010.11929; Tiny as in DeiT, 2012.12877), for any image size."""

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from harness.core.config_base import IDENTITY_IF_CHANGED
from harness.core.errors import UserError
from harness.models._timm import create
from harness.models.base import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class Config(ModelConfig):
    """Settings of vit_tiny."""

    name: str = "vit_tiny"
    width: int = Field(192, ge=8, le=4096, description="features of a token")
    depth: int = Field(12, ge=1, le=64, description="transformer blocks")
    heads: int = Field(3, ge=1, le=64, description="attention heads; must divide width")
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="hidden units of a block's MLP, in widths")
    patch: int | None = Field(
        None,
        ge=1,
        le=256,
        description="side of a patch in pixels; null: image side // 8",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth: rate of the last block")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise UserError(f"model vit_tiny: heads {self.heads} do not divide width {self.width}")
        return self


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
    """The model for square images (N, C, side, side), cut into patches of config.patch, or side // 8, pixels.

    8x8 and 32x32 images both give 64 patches without `patch`. Pretrained patch and position embeddings are resampled
    by timm.
    Raises UserError when images are not square, the patch does not divide the side, or weights do not fit.
    """
    _, side, other = input_shape
    patch = config.patch or max(1, side // 8)
    if side != other:
        raise UserError(f"model vit_tiny needs square images, not {side}x{other}")
    if side % patch:
        raise UserError(
            f"model vit_tiny: image side {side} is not a multiple of the patch {patch}; set patch or image_side"
        )
    config.check_pretrained(width=192, depth=12, heads=3, mlp_ratio=4.0)
    return create(
        "vit_tiny_patch16_224",
        config.pretrained,
        input_shape,
        num_classes,
        patch_size=patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path,
    )
