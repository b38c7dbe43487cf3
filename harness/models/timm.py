"""Any model of timm: `name: timm:resnet34`, `timm:deit_tiny_patch16_224.fb_in1k`."""

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from harness.core.errors import UserError
from harness.models._timm import check_name, create
from harness.models.base import ModelConfig

if TYPE_CHECKING:
    from torch import nn

_PREFIX = "timm:"


class Config(ModelConfig):
    """Settings of timm's models. Some take no `drop_path` or no `dropout`, and refuse it."""

    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth: rate of the last block; null: the model's own default"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="rate of dropout before the classifier; null: the model's own default"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.startswith(_PREFIX):
            raise UserError("not of the form timm:<name>")
        check_name(name.removeprefix(_PREFIX))
        return name


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
    """The model for images (N, C, H, W), built for that size where it takes one.

    Raises UserError for an unknown name, images it cannot work on, and weights that cannot be had.
    """
    settings = {"drop_path_rate": config.drop_path, "drop_rate": config.dropout}
    given = {key: value for key, value in settings.items() if value is not None}
    name = config.name.removeprefix(_PREFIX)
    return create(name, config.pretrained, input_shape, num_classes, **given)
