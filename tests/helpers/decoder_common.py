"""A tiny decoder of transformers, with slots for keys and values, and what tests of these need of it."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.base import Calibration
from harness.models._decoder import ATTENTION, as_decoder, transformers_for
from harness.models._decoder import decoded as decode

VOCABULARY, LENGTH = 24, 20


class Decoder(nn.Module):
    """Tokens (N, T) to logits (N, T, V). family: of transformers."""

    def __init__(self, family: str = "Llama", **sizes: Any) -> None:
        library = transformers_for("a test")
        super().__init__()
        settings = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "attn_implementation": ATTENTION,
        }
        config = getattr(library, f"{family}Config")(**(settings | sizes))
        network = getattr(library, f"{family}ForCausalLM")(config)
        self.network: Any = as_decoder(network, family, (LENGTH,), VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(tokens)
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
    return decode(model.network, sequences)


def output_error(model: nn.Module, source: nn.Module, sequences: Tensor) -> float:
    """Mean squared difference of logits."""
    with torch.no_grad():
        return float((model(sequences) - source(sequences)).square().mean())
