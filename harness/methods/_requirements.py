"""Features of a model that some methods need; `Method.requires` lists names of FEATURES."""

from collections.abc import Callable, Iterable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.core.errors import UserError
from harness.quantization.attention import attentions


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that normalise activations (batch, layer and group norms), by name."""
    kinds = _BatchNorm | nn.LayerNorm | nn.GroupNorm
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


#: By name: the words for an error message, and a test of a model.
FEATURES: dict[str, tuple[str, Callable[[nn.Module], bool]]] = {
    "attention": (
        "attention whose products can be reached (timm's vision transformers, TinyViT)",
        lambda model: bool(attentions(model)),
    ),
    "norms": ("normalization layers (batch, layer or group norm)", lambda model: bool(norm_layers(model))),
}


def lacking(model: nn.Module, required: Iterable[str]) -> list[str]:
    """The required features that the model lacks, in words. Raises KeyError for a name that is not in FEATURES."""
    return [words for words, present in map(FEATURES.__getitem__, required) if not present(model)]


def check_requirements(model: nn.Module, name: str, methods: Mapping[str, Iterable[str]]) -> None:
    """Refuse a model that lacks a required feature. name: the model's. methods: what each one requires.

    Raises UserError naming method, model and what is missing.
    """
    for method, required in methods.items():
        for words in lacking(model, required):
            raise UserError(f"method {method!r} needs {words}, and model {name!r} has none")
