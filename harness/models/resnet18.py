"""ResNet-18 (He et al. 2016, arXiv 1512.03385), torchvision's, with a stem for small images."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.core.errors import UserError
from harness.models._weights import downloading, drop_head
from harness.models.base import ModelConfig

if TYPE_CHECKING:
    from torch import nn


class Config(ModelConfig):
    """Settings of resnet18."""

    name: str = "resnet18"
    small_stem: bool = Field(
        True, description="3x3 first convolution with stride 1 and no max-pool, for images of 8 to 64 pixels"
    )
    width: int = Field(64, ge=1, le=512, description="channels of the first stage; later ones double them")


def build(config: Config, input_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
    """The model for images (N, C, H, W), C of any number from scratch, 3 for pretrained weights.

    At width 64 names and shapes of the state dict are torchvision's, but for the stem.
    Raises UserError when pretrained weights do not fit the settings or cannot be had.
    """
    from torch import nn
    from torchvision.models import resnet18

    config.check_pretrained(small_stem=False, width=64)
    if config.pretrained and input_shape[0] != 3:
        raise UserError(f"model resnet18: pretrained weights need 3 image channels, not {input_shape[0]}")
    model: Any = resnet18(num_classes=num_classes)
    if config.width != 64:
        _set_width(model, config.width, num_classes)
    if config.small_stem:
        model.conv1 = nn.Conv2d(input_shape[0], config.width, 3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif input_shape[0] != 3 or config.width != 64:
        model.conv1 = nn.Conv2d(input_shape[0], config.width, 7, stride=2, padding=3, bias=False)
    if config.small_stem or config.width != 64 or input_shape[0] != 3:
        _initialise(model)
    if config.pretrained:
        _load_published(model)
    return model


def _initialise(model: "nn.Module") -> None:
    """Convolutions as torchvision's constructor initialises them; those put in its place had PyTorch's default."""
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _set_width(model: Any, width: int, num_classes: int) -> None:
    """Rebuild torchvision's stages from another base width, which its constructor keeps at 64."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    model.inplanes = width
    model.bn1 = nn.BatchNorm2d(width)
    for stage in range(4):
        blocks = model._make_layer(BasicBlock, width << stage, 2, stride=1 if stage == 0 else 2)
        setattr(model, f"layer{stage + 1}", blocks)
    model.fc = nn.Linear(width << 3, num_classes)


def _load_published(model: "nn.Module") -> None:
    """ImageNet-1k weights, in place; the classifier stays as initialised unless it has 1000 classes."""
    from torchvision.models import ResNet18_Weights

    with downloading("resnet18"):
        state = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    model.load_state_dict(drop_head(dict(state), model, ("fc.weight", "fc.bias")))
