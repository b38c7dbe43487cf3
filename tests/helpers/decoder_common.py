"""A tiny decoder of transformers, with slots for keys and values, and what tests of these need of it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.base import Calibration
from harness.quantization.key_values import KeyValueSlots, attend

VOCABULARY, LENGTH = 24, 20


def keys_and_values(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    found = attend(module.kv_slots, query, key, value, mask, scaling, more.get("dropout", 0.0))
    return found.transpose(1, 2).contiguous(), None


class Decoder(nn.Module):
    """Tokens (N, T) to logits (N, T, V). family: of transformers."""

    def __init__(self, family: str = "Llama", **sizes: Any) -> None:
        import transformers
        from transformers import AttentionInterface

        AttentionInterface.register("kv_test", keys_and_values)
        super().__init__()
        settings = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "attn_implementation": "kv_test",
        }
        config = getattr(transformers, f"{family}Config")(**(settings | sizes))
        self.network: Any = getattr(transformers, f"{family}ForCausalLM")(config)
        for layer in self.network.model.layers:
            layer.self_attn.kv_slots = KeyValueSlots()

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits


def decoder(**sizes: Any) -> Decoder:
    """With weights large enough that attention is not uniform."""
    torch.manual_seed(0)
    model = Decoder(**sizes).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.3)
    return model


def with_outliers(model: Decoder, factor: float = 20.0) -> Decoder:
    """Two key channels of each head, which RoPE turns into one another, times a factor, and queries divided by it."""
    for layer in model.network.model.layers:
        attention: Any = layer.self_attn
        size = attention.head_dim
        for place in (1, 1 + size // 2):
            attention.k_proj.weight[place::size] *= factor
            attention.q_proj.weight[place::size] /= factor
    return model


@cache
def tokens(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


CALIBRATION = Calibration(lambda index: (tokens(), tokens()), 1)


def decoded(model: Decoder, sequences: Tensor) -> Tensor:
    """Logits of a decoder that gets one token at a time and keeps a cache."""
    from transformers import DynamicCache

    cache_of, found = DynamicCache(), []
    for place in range(sequences.shape[1]):
        part = sequences[:, place : place + 1]
        found.append(model.network(input_ids=part, cache=cache_of, use_cache=True).logits)
    return torch.cat(found, dim=1)


def output_error(model: nn.Module, source: nn.Module, sequences: Tensor) -> float:
    """Mean squared difference of logits."""
    with torch.no_grad():
        return float((model(sequences) - source(sequences)).square().mean())
