"""Attention with one matrix per head for queries and keys: logits_ij = scale * x_i^T W_h x_j, W_h = W_q^h^T W_k^h.

Tokens x_i have C features, queries and keys of a head h have d, so W_h is C x C. It replaces two matrices, and a
quantizer sees it. It cannot hold biases of queries and keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.quantization.attention import (
    ExplicitAttention,
    ExplicitTinyVitAttention,
    OpenAttention,
    OpenVitAttention,
    kind_of,
)
from harness.quantization.layers import QuantLinear, QuantMatMul
from harness.quantization.slots import SlotTakenError, Unfilled


class HeadProducts(nn.Module):
    """Maps (2 H d, C), the rows of W_q over those of W_k, heads in order, to (H C, C) with blocks `W_q^h^T W_k^h`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, weight: Tensor) -> Tensor:
        queries, keys = weight.unflatten(0, (2, self.heads, -1)).unbind(0)
        return (queries.transpose(1, 2) @ keys).flatten(0, 1)


class SplitProjection(nn.Module):
    """Replaces the fused `qkv` layer of an attention by `qk`, the products of its heads, and `v`, its values.

    qk: weight (2 H d, C), the trained rows of W_q over those of W_k; its slot weight_transform maps it to (H C, C).
    v: weight (H d_v, C), with the bias of the values.
    """

    def __init__(self, qkv: nn.Linear, heads: int, queries_and_keys: Tensor, values: Tensor) -> None:
        """queries_and_keys, values: indices of their rows in `qkv`, int64, heads in order."""
        super().__init__()
        self.heads = heads
        self.qk = _layer(qkv.weight, queries_and_keys, None)
        self.qk.fill("weight_transform", HeadProducts(heads))
        self.v = _layer(qkv.weight, values, qkv.bias)
        self.train(qkv.training)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) to `W_h x_j`, (B, H, N, C), and to values, (B, H, N, d_v)."""
        return self._by_head(self.qk(x)), self._by_head(self.v(x))

    def _by_head(self, features: Tensor) -> Tensor:
        return features.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _layer(weight: Tensor, rows: Tensor, bias: Tensor | None) -> QuantLinear:
    """A layer with slots and copies of some rows."""
    # On the meta device: drawn initial values would be replaced at once.
    layer = QuantLinear(weight.shape[1], len(rows), bias=bias is not None, device="meta")
    layer.add_slots()
    layer.weight = nn.Parameter(weight.detach()[rows], requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach()[rows], requires_grad=bias.requires_grad)
    return layer


class BilinearAttention(OpenVitAttention):
    """timm's ViT attention, never fused: `softmax(scale * x_i^T W_h x_j + mask) v`, otherwise unchanged.

    `qk_matmul` multiplies the scaled tokens by `W_h x_j` of all heads, `av_matmul` scores by values, as in
    `ExplicitAttention`.
    """

    qk_matmul: QuantMatMul
    av_matmul: QuantMatMul

    def logits_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        this: Any = self
        keys, values = self.qkv(x)
        return _logits(self.qk_matmul, x * this.scale, keys), values

    def mix(self, scores: Tensor, values: Tensor) -> Tensor:
        return self.av_matmul(scores, values)


class BilinearTinyVitAttention(OpenAttention):
    """TinyViT's window attention, never fused: `softmax(scale * x_i^T W_h x_j + bias) v`, x the normalised tokens.

    The relative biases are computed in every pass, as in `ExplicitTinyVitAttention`; products as in
    `BilinearAttention`.
    """

    qk_matmul: QuantMatMul
    av_matmul: QuantMatMul

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of one window (B, N, C) to (B, N, C)."""
        this: Any = self
        x = this.norm(x)
        keys, values = self.qkv(x)
        scores = _logits(self.qk_matmul, x * this.scale, keys)
        scores = (scores + this.attention_biases[:, this.attention_bias_idxs]).softmax(dim=-1)
        return this.proj(self.av_matmul(scores, values).transpose(1, 2).flatten(2))


def _logits(product: nn.Module, x: Tensor, keys: Tensor) -> Tensor:
    """`x_i . keys_jh`, (B, H, N, N), of tokens (B, N, C) and of keys (B, H, N, C)."""
    # One product for all heads: broadcasting x over them would copy it H times.
    logits: Tensor = product(x, keys.flatten(1, 2).transpose(1, 2))
    return logits.unflatten(-1, keys.shape[1:3]).transpose(1, 2)


def _vit_rows(attention: Any) -> tuple[Tensor, Tensor]:
    """The rows of queries and keys, and those of values: all queries, all keys, all values."""
    rows = torch.arange(attention.qkv.out_features).view(3, -1)
    return rows[:2].flatten(), rows[2]


def _tiny_vit_rows(attention: Any) -> tuple[Tensor, Tensor]:
    """The same for TinyViT, which stores queries, keys and values head by head."""
    rows = torch.arange(attention.qkv.out_features).view(attention.num_heads, -1)
    queries, keys, values = rows.split([attention.key_dim, attention.key_dim, attention.val_dim], dim=1)
    return torch.cat([queries.flatten(), keys.flatten()]), values.flatten()


_FORMS: dict[type[nn.Module], tuple[type[nn.Module], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    ExplicitAttention: (BilinearAttention, _vit_rows),
    ExplicitTinyVitAttention: (BilinearTinyVitAttention, _tiny_vit_rows),
}


def check_joinable(name: str, attention: Any) -> None:
    """Raise unless queries and keys of an attention (one of `harness.quantization.attention.attentions`) can be joined.

    SlotTakenError if a filled slot would be lost, UserError if logits are not a bilinear form of tokens.
    """
    if isinstance(attention, ExplicitAttention | ExplicitTinyVitAttention):
        raise SlotTakenError(
            f"attention {name!r}: another method works on the products of its queries and keys, and joined in one "
            "matrix they have none"
        )
    for slot in getattr(attention.qkv, "SLOTS", ()):
        filled = getattr(attention.qkv, slot)
        if not isinstance(filled, Unfilled):
            raise SlotTakenError(
                f"attention {name!r}: slot {slot} of its qkv layer already holds {type(filled).__name__}, and joining "
                "queries and keys replaces that layer; name the method that does so first"
            )
    for norm in ("q_norm", "k_norm"):
        module = getattr(attention, norm, None)
        if not isinstance(module, nn.Identity | None):
            raise UserError(
                f"attention {name!r}: {norm} ({type(module).__name__}) comes between its queries and keys, which "
                "one matrix cannot hold; exclude its qkv layer"
            )


def join_queries_and_keys(attention: Any) -> None:
    """Join queries and keys of an attention that passed `check_joinable`, in place; drops their biases.

    The module object and its other submodules stay; `qkv` becomes a `SplitProjection`.
    """
    kind, rows = _FORMS[kind_of(attention)]
    attention.qkv = SplitProjection(attention.qkv, attention.num_heads, *rows(attention))
    # Only the class changes, so hooks and references stay.
    attention.__class__ = kind
    attention.fused_attn = False
    for product in ("qk_matmul", "av_matmul"):
        setattr(attention, product, QuantMatMul().train(attention.training))
