"""Attentions in float64 and networks on which queries and keys are joined, and which rows of qkv are whose."""

import itertools
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.tiny_vit import Attention as TinyVitAttention
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.core import registry
from harness.methods.base import Context
from harness.methods.qkr import QueryKeyReparametrization
from harness.models import build_model

WIDTH, TOKENS = 12, 4
#: Heads, their features for queries and keys where not WIDTH / heads, and timm's other settings of ViT's attention.
VITS: list[dict[str, Any]] = [
    {"num_heads": 2},
    {"num_heads": 3, "dim_out": 7},
    {"num_heads": 3, "attn_head_dim": 5, "norm_layer": nn.LayerNorm, "scale_norm": True, "gated": True},
]
TINY_VITS: list[dict[str, Any]] = [
    {"num_heads": 2, "key_dim": 6, "attn_ratio": 1},
    {"num_heads": 3, "key_dim": 4, "attn_ratio": 2},
]
ATTENTIONS = [*(("vit", settings) for settings in VITS), *(("tiny_vit", settings) for settings in TINY_VITS)]
each_attention = pytest.mark.parametrize(("kind", "settings"), ATTENTIONS, ids=str)


class Holder(nn.Module):
    """A model of one attention, in float64, all of its numbers random: biases of zero would hide a mistake."""

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        if kind == "vit":
            self.attn: Any = Attention(WIDTH, qkv_bias=True, **settings)
        else:
            self.attn = TinyVitAttention(WIDTH, resolution=(2, 2), **settings)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.attn.fused_attn = False

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attn(x)
        return result


def rows(attention: Any) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Which rows of qkv each head's queries, keys and values have, written out as timm's forward passes order them."""
    heads = range(attention.num_heads)
    if not hasattr(attention, "key_dim"):
        d, whole = attention.head_dim, attention.num_heads * attention.head_dim
        queries, keys, values = ([[part * whole + h * d + i for i in range(d)] for h in heads] for part in range(3))
        return queries, keys, values
    d, d_v = attention.key_dim, attention.val_dim
    starts = [h * (2 * d + d_v) for h in heads]
    return (
        [[start + i for i in range(d)] for start in starts],
        [[start + d + i for i in range(d)] for start in starts],
        [[start + 2 * d + i for i in range(d_v)] for start in starts],
    )


def flat(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def tokens(batch: int = 3) -> Tensor:
    return torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def zero_biases(attention: Any, *parts: int) -> None:
    """Zero the biases of queries (0) and keys (1)."""
    with torch.no_grad():
        for part in parts:
            attention.qkv.bias[flat(rows(attention)[part])] = 0


def joined(model: nn.Module, exclude: tuple[str, ...] = ()) -> Any:
    """The model itself, prepared by the method alone."""
    method = QueryKeyReparametrization(QueryKeyReparametrization.Config(), Context(exclude=exclude))
    method.prepare(model, NO_DATA)
    return model


def vit(**settings: Any) -> dict[str, Any]:
    return {"name": "vit_tiny", "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.0, **settings}


def network(name: str, **settings: Any) -> nn.Module:
    model = build_model(registry.load("model", name).Config(name=name, **settings), (3, 32, 32), 5, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("attention_biases", "qkv.bias")):
                parameter.normal_()
    return model.eval()
