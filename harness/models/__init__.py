"""Models: one file each, found by name; `build_model` builds one with its initial weights."""

from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry
from harness.core.seeding import sub_seed
from harness.models._weights import load_checkpoint
from harness.models.base import ModelConfig, TaskModelConfig

if TYPE_CHECKING:  # imported on use, here and in each model's file: settings are checked without torch
    from torch import Tensor, nn

__all__ = ["ModelConfig", "TaskModelConfig", "build_model", "find", "load_checkpoint", "resized_shape"]


def find(name: str) -> Any:
    """What a model's file defines: `Config` and `build`. Raises UserError for an unknown name."""
    found = registry.check("model", name)
    if outside.is_name(found):
        from harness.models._outside import model

        return model(found)
    return registry.load("model", found)


def build_model(config: TaskModelConfig, input_shape: tuple[int, ...], outputs: int, seed: int) -> "nn.Module":
    """A model on the CPU, in training mode, that maps images (N, C, H, W) to logits (N, classes), or as its task says.

    input_shape, outputs: of the data; of images (C, H, W) and the number of classes. The weights depend on (config,
    shapes, seed) alone, through the sub-seed `init`; the caller's random state stays as it was. Where images must be
    resized, a forward hook does it, so that names in the state dict do not change.
    Raises UserError when the model does not fit the images, or the initial weights are missing or do not fit.
    """
    import torch

    shape = resized_shape(config, input_shape) if isinstance(config, ModelConfig) else input_shape
    # Only the CPU generator: torch.manual_seed would reach, and fork_rng would start, every GPU.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(sub_seed(seed, "init"))
        model: nn.Module = find(config.name).build(config, shape, outputs)
    if config.checkpoint is not None:
        load_checkpoint(model, config.checkpoint, new_head=getattr(config, "head", "keep") == "new")
    if shape != input_shape:
        model.register_forward_pre_hook(partial(_resize_images, size=(shape[1], shape[2])))
    return model


def resized_shape(config: ModelConfig, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) as the model sees it: same aspect, the shorter side as the configuration asks for."""
    channels, height, width = input_shape
    shorter = min(height, width)
    side = config.image_side or max(shorter, config.min_image_side)
    return channels, round(height * side / shorter), round(width * side / shorter)


def _resize_images(model: "nn.Module", args: tuple[Any, ...], size: tuple[int, int]) -> tuple[Any, ...]:
    """A forward_pre_hook, module-level so that it pickles: images (N, C, H, W) to (N, C, *size), bilinear."""
    from torch.nn import functional

    images: Tensor = args[0]
    if images.shape[2:] != size:
        images = functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
    return (images, *args[1:])
