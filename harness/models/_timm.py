"""What the models taken from timm share. timm is imported inside: it takes seconds, and mlp5 must not pay."""

from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError, nearest
from harness.core.hub import hub_offline_if_unreachable
from harness.models._weights import downloading

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What timm's constructors and forward passes raise where images or arguments do not suit them.
_BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_name(name: str) -> str:
    """`name` itself when timm knows it, or a UserError with the nearest spelling."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models())
        raise UserError(f"unknown timm model {name!r}{hint} (timm.list_models() lists all)")
    legal = timm.list_models(f"{architecture}.*", pretrained=True) if tag else [name]
    if name not in legal:
        raise UserError(
            f"timm model {name!r}: unknown weights {tag!r}{nearest(name, legal)} (legal: {', '.join(legal)})"
        )
    return name


def create(name: str, pretrained: bool, input_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> Any:
    """timm's model of that name for images (N, C, H, W); a head for other classes is initialised anew.

    Raises UserError for an unknown name, when it cannot be built or run on such images, and when published
    weights do not exist or cannot be downloaded.
    """
    import timm

    check_name(name)
    wanted = dict(settings, in_chans=input_shape[0], num_classes=num_classes)
    if pretrained:
        if not timm.is_model_pretrained(name):
            raise UserError(f"timm model {name!r} has no pretrained weights; init: scratch or checkpoint:<path>")
        with downloading(f"timm model {name!r}"), hub_offline_if_unreachable():
            return _create_for_size(name, True, input_shape, wanted)
    return _create_for_size(name, False, input_shape, wanted)


def _create_for_size(name: str, pretrained: bool, input_shape: tuple[int, int, int], wanted: dict[str, Any]) -> Any:
    """With the image size where the constructor takes one (ViTs), else without (convolutional networks)."""
    import timm

    try:
        try:
            model = timm.create_model(name, pretrained=pretrained, img_size=input_shape[1:], **wanted)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(name, pretrained=pretrained, **wanted)
        drop_bias_caches(model)
        _try_forward(model, input_shape, wanted["num_classes"])
    except _BUILD_ERRORS as error:  # errors of a download are none of these
        size = "x".join(map(str, input_shape))
        hint = "" if isinstance(error, TypeError) else "; image_side resizes images in the forward pass"
        raise UserError(
            f"timm model {name!r} cannot be built for {size} images ({type(error).__name__}: {error}){hint}"
        ) from error
    return model


def _try_forward(model: "nn.Module", input_shape: tuple[int, int, int], num_classes: int) -> None:
    """One image through the model: some are built for any size and fail later, or give no logits."""
    import torch

    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(1, *input_shape))
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        raise ValueError(f"it returns no logits of shape (N, {num_classes})")


def drop_bias_caches(model: "nn.Module") -> None:
    """Make attention with relative biases (TinyViT, LeViT) compute them anew in every forward pass.

    In eval mode timm keeps them from the first pass on: weights loaded or rounded afterwards would not count,
    and a copy of the model fails while the cache holds a graph.
    """
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.register_forward_hook(_drop_bias_cache)


def _drop_bias_cache(module: Any, args: tuple[Any, ...], output: "Tensor") -> None:
    module.attention_bias_cache.clear()
