"""Decoders of the transformers library as networks from tokens to logits, with attention that this harness can enter.

Their attention calls `attend`, registered through AttentionInterface, with keys and values after the positions are in
(RoPE), before their heads are repeated for grouped queries.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.core.extras import from_extra
from harness.quantization import key_values
from harness.quantization.attention import OPENS, PRODUCTS

#: The name of `attend` among transformers' attention functions.
ATTENTION = "oscillation_harness"
#: Of an attention module: the slots for its keys and values; empty ones until it has them.
KEY_VALUE_SLOTS = "key_value_slots"
_EMPTY = key_values.KeyValueSlots()
#: Arguments of other attention functions that change what is computed.
_UNKNOWN = ("softcap", "s_aux", "position_bias")


def transformers_for(where: str) -> Any:
    """The transformers library, which then knows `attend`. Raises UserError naming `where` if it is missing."""
    library = from_extra("transformers", "language", where)
    masks = from_extra("transformers.masking_utils", "language", where)
    library.AttentionInterface.register(ATTENTION, attend)
    library.AttentionMaskInterface.register(ATTENTION, masks.sdpa_mask)
    return library


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of queries (N, heads, q, d) to keys and values (N, kv heads, k, d): (N, q, heads, d).

    attention_mask: bool, True where a query may attend; None: causal for several queries, all keys for one. Keys and
    values, with a cache those of all tokens so far, go through the module's slots for them. Products are fused unless
    the module has them as `qk_matmul` and `av_matmul` (`expose_attention_products`).
    """
    for name in _UNKNOWN:
        if others.get(name) is not None:
            raise UserError(f"{type(module).__name__}: attention with {name!r} is not supported")
    if not hasattr(module, OPENS):
        setattr(module, OPENS, True)
    if attention_mask is None and is_causal is False:
        attention_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool)
    products = (module.qk_matmul, module.av_matmul) if hasattr(module, PRODUCTS[0]) else None
    slots = getattr(module, KEY_VALUE_SLOTS, _EMPTY)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = key_values.attend(slots, query, key, value, attention_mask, scale, dropout, products)
    return mixed.transpose(1, 2).contiguous(), None


def as_decoder(network: Any, name: str, input_shape: Sequence[int], outputs: int) -> nn.Module:
    """A causal language model of transformers, built with ATTENTION, that maps tokens (N, T) to logits (N, T, V).

    name: the model's, for messages. input_shape, outputs: (T,) and the size of the data's vocabulary. A second argument
    may be a cache, for decoding. Embeddings that are tied to the last layer are separated from it: the layer is
    quantized and they stay float. Names of parameters stay those of the checkpoint.
    Raises UserError for another kind of attention, and where context or vocabulary are too large for it.
    """
    longest = getattr(network.config, "max_position_embeddings", None)
    if longest is not None and input_shape[0] > longest:
        raise UserError(f"data.context: {input_shape[0]}: model {name!r} has positions for {longest} tokens")
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    if head is None or outputs > embedding.num_embeddings:
        has = "no vocabulary to predict" if head is None else f"a vocabulary of {embedding.num_embeddings}"
        raise UserError(f"data.tokenizer: the text has {outputs} different tokens, and model {name!r} {has}")
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        network.config.tie_word_embeddings = False
    kind: Any = type(network)
    network.__class__ = _with_logits(kind)
    model: nn.Module = network.eval()
    with torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long))
    attentions = [module for module in model.modules() if hasattr(module, OPENS)]
    for module in attentions:
        module.add_module(KEY_VALUE_SLOTS, key_values.KeyValueSlots())
    if not attentions:
        raise UserError(f"model {name!r}: {type(network).__name__} does not compute attention by AttentionInterface")
    return model.train()


@cache
def _with_logits(kind: Any) -> type[nn.Module]:
    """The subclass of a causal language model whose forward pass takes tokens, and a cache, and gives logits alone."""
    cached = "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"

    def forward(self: Any, tokens: Tensor, cache: Any = None) -> Tensor:
        found: Tensor = kind.forward(self, tokens, use_cache=cache is not None, **{cached: cache}).logits
        return found

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@torch.no_grad()
def decoded(model: Any, tokens: Tensor) -> Tensor:
    """What a decoder gives for tokens (N, T) that come one at a time, with a cache: logits (N, T, V)."""
    cache = transformers_for("decoding").DynamicCache(config=model.config)
    return torch.cat([model(token, cache) for token in tokens.split(1, dim=1)], dim=1)
