"""Attention with its two products as modules, so that methods can quantize keys, values and scores."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.quantization.layers import QuantMatMul, glob_patterns

#: The modules of both products, in explicit attention.
PRODUCTS = ("qk_matmul", "av_matmul")
#: Set on attention modules that need no other class: their products are in these modules where they have them.
OPENS = "opens_products"


class OpenAttention(nn.Module):
    """Base of unfused attentions: an existing module's `__class__` is changed to a subclass of this, in place."""

    qkv: nn.Module

    def __init__(self) -> None:
        raise TypeError("made from an existing attention by expose_attention_products or join_queries_and_keys")


class OpenVitAttention(OpenAttention):
    """timm's ViT attention, as in timm's unfused path. Subclasses define both products."""

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled logits (B, heads, N, N) without a mask, and values (B, heads, N, d), of tokens (B, N, C)."""
        raise NotImplementedError

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        """The values weighted by softmax scores."""
        return scores @ values

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, N, C) to (B, N, dim_out).

        attn_mask: bool (True: may be attended to) or added to the scores, broadcast to (B, heads, N, N); a
        causal mask takes its place, as in timm.
        """
        this: Any = self
        gate_layer = getattr(self, "gate", None)
        gate = gate_layer(x).sigmoid() if gate_layer is not None else None
        scores, values = self.logits_and_values(x)
        bias = additive_mask(scores, attn_mask, is_causal)
        scores = (scores if bias is None else scores + bias).softmax(dim=-1)
        x = self.mix(this.attn_drop(scores), values)
        x = this.norm(x.transpose(1, 2).flatten(2))
        if gate is not None:
            x = x * gate
        return this.proj_drop(this.proj(x))


class ExplicitAttention(OpenVitAttention):
    """`av_matmul(softmax(qk_matmul(scale * q, k^T) + mask), v)`, from a `timm.layers.Attention`."""

    qk_matmul: QuantMatMul
    av_matmul: QuantMatMul

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        this: Any = self
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, this.num_heads, this.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = this.q_norm(q) * this.scale, this.k_norm(k)
        return self.qk_matmul(q, k.transpose(-2, -1)), v

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        return self.av_matmul(scores, values)


class ExplicitTinyVitAttention(OpenAttention):
    """TinyViT's window attention, never fused: `av_matmul(softmax(qk_matmul(scale * q, k^T) + bias), v)`.

    Made from a `timm.models.tiny_vit.Attention` with its parameters. The relative biases are computed in every pass,
    since timm's cache in eval mode would be out of date when the weights change.
    """

    qk_matmul: QuantMatMul
    av_matmul: QuantMatMul

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of one window (B, N, C) to (B, N, C)."""
        this: Any = self
        batch, tokens, _ = x.shape
        qkv = this.qkv(this.norm(x)).view(batch, tokens, this.num_heads, -1)
        q, k, v = qkv.permute(0, 2, 1, 3).split([this.key_dim, this.key_dim, this.val_dim], dim=-1)
        scores = self.qk_matmul(q * this.scale, k.transpose(-2, -1))
        scores = (scores + this.attention_biases[:, this.attention_bias_idxs]).softmax(dim=-1)
        x = self.av_matmul(scores, v).transpose(1, 2).flatten(2)
        return this.proj(x)


_EXPLICIT: dict[tuple[str, str], type[nn.Module]] = {
    ("timm.layers.attention", "Attention"): ExplicitAttention,
    # older versions of timm
    ("timm.models.vision_transformer", "Attention"): ExplicitAttention,
    ("timm.models.tiny_vit", "Attention"): ExplicitTinyVitAttention,
}


def _qualified(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a model that are explicit or can be made so, by name."""
    explicit = (ExplicitAttention, ExplicitTinyVitAttention)
    found = model.named_modules()
    return {name: module for name, module in found if isinstance(module, explicit) or _qualified(module) in _EXPLICIT}


def kind_of(attention: nn.Module) -> type[nn.Module]:
    """The explicit class of one of `attentions`: ExplicitAttention or ExplicitTinyVitAttention."""
    return _EXPLICIT.get(_qualified(attention), type(attention))


def expose_attention_products(model: nn.Module, exclude: str | Iterable[str] = ()) -> int:
    """Make the products of every attention explicit, in place; state dict and module objects stay the same.

    Each attention gets `qk_matmul` (queries by keys) and `av_matmul` (scores by values), without parameters; one whose
    queries and keys are joined (`join_queries_and_keys`) has them. exclude: globs of modules that are left alone.
    Decoders of transformers compute their products by these modules once they are there (harness/models/_decoder.py).
    Returns the number of attention modules that are explicit afterwards, including those of an earlier call; 0 if the
    model has none. Raises UserError, before anything changes, naming a module whose attention cannot be made explicit
    (torch's MultiheadAttention; attention of timm other than ViT's and TinyViT's).
    """
    patterns = glob_patterns(exclude)
    left = {name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    found: dict[str, Any] = {name: module for name, module in attentions(model).items() if name not in left}
    for name, module in model.named_modules():
        closed = isinstance(module, nn.MultiheadAttention) or hasattr(module, "fused_attn")
        if closed and not isinstance(module, OpenAttention) and name not in found and name not in left:
            raise UserError(
                f"module {name!r}: the products inside {type(module).__module__}.{type(module).__qualname__} cannot be "
                "quantized; only the attention of timm's vision transformers and of TinyViT can"
            )
    for module in found.values():
        explicit = _EXPLICIT.get(_qualified(module))
        if explicit is not None:
            # Only the class changes, so hooks, references and the state dict stay.
            module.__class__ = explicit
            module.fused_attn = False
            _add_products(module)
    for name, module in list(model.named_modules()):
        if getattr(module, OPENS, False) and name not in left:
            _add_products(module)
    return sum(isinstance(module, OpenAttention) or hasattr(module, PRODUCTS[0]) for module in model.modules())


def _add_products(module: nn.Module) -> None:
    for product in PRODUCTS:
        if not hasattr(module, product):
            setattr(module, product, QuantMatMul().train(module.training))


def additive_mask(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """The mask to add to the scores (B, heads, N, N), as in timm's `resolve_self_attn_mask`."""
    if is_causal:
        tokens = scores.shape[-1]
        return scores.new_full((tokens, tokens), float("-inf")).triu_(1)
    if mask is not None and mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return mask
