"""Layers that a weight quantizer does not support. Each error says what to do."""

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from harness.core.errors import UserError

#: Refused rather than silently left in float. Embeddings and norms stay float, as in the paper.
_REFUSED = (
    nn.MultiheadAttention,  # reads the weights of its layers past their forward
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
)
#: Methods that a subclass must not override: the quantized forward pass would not call them.
_FORWARDS = ("forward", "_conv_forward")
#: Classes whose forward computes what their base class computes.
_SAME_FORWARD = {("timm.layers.linear", "Linear")}
#: Forward pre-hooks that compute a weight, and the call that makes it a parameter again.
_UNDO = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(layer)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(layer)",
    "BasePruningMethod": "torch.nn.utils.prune.remove(layer, 'weight')",
}


def check_type(name: str, layer: nn.Module) -> None:
    """Raise UserError for a layer whose weights would be left in float."""
    if isinstance(layer, _REFUSED):
        raise UserError(
            f"layer {name!r}: weights of {type(layer).__name__} cannot be quantized; exclude '{name}*' to leave "
            "them in float"
        )


def check_forward(name: str, layer: nn.Module, plain: type[nn.Module]) -> None:
    """Raise UserError where a subclass of `plain`, or the layer itself, replaces the forward pass."""
    if any(_replaces(layer, plain, method) for method in _FORWARDS):
        raise UserError(
            f"layer {name!r}: {type(layer).__name__} computes its own forward or weight, which a quantizer "
            "cannot enter; exclude it by name"
        )


def _replaces(layer: nn.Module, plain: type[nn.Module], method: str) -> bool:
    if method in vars(layer):
        return True
    owner = next((each for each in type(layer).__mro__ if method in vars(each)), plain)
    same = (owner.__module__, owner.__qualname__) in _SAME_FORWARD
    return not same and getattr(type(layer), method, None) is not getattr(plain, method, None)


def check_weight(name: str, layer: nn.Module) -> None:
    """Raise UserError where `weight` is no parameter of a linear or convolution layer, or has no shape yet."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise UserError(
            f"layer {name!r}: {type(layer).__name__} has no weights before its first forward pass; call the network "
            "on a batch of inputs before this"
        )
    if layer._parameters.get("weight") is None or is_parametrized(layer):
        raise UserError(
            f"layer {name!r}: the weight of this {type(layer).__name__} is computed from other tensors, so neither its "
            f"gradient nor its rounded value would reach what is trained; {_undo(layer)}or exclude it by name"
        )


def _undo(layer: nn.Module) -> str:
    if is_parametrized(layer):
        return "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first, "
    kinds = [kind.__name__ for hook in layer._forward_pre_hooks.values() for kind in type(hook).__mro__]
    return next((f"call {_UNDO[kind]} first, " for kind in kinds if kind in _UNDO), "")
