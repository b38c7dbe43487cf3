"""Keys and values as a cache with few bits would hold them: slots of attention, what fills them, and attention itself.

Keys come after their rotation (RoPE), and both before they are repeated for the query heads that share them:
(B, H, T, D) for T tokens, H heads of keys and values, D values each. What a cache keeps is never computed anew, so no
token may be rounded otherwise once later ones have come. Decoding token by token then equals one masked pass over all.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.quantization.autograd import round_ste
from harness.quantization.grid import levels, safe_step
from harness.quantization.slots import Slotted, quantized

#: A product of two tensors, such as queries by keys.
Product = Callable[[Tensor, Tensor], Tensor]


class KeyValueSlots(Slotted):
    """The slots of an attention module, which has it as a submodule and passes its keys and values through `attend`."""

    SLOTS: ClassVar[tuple[str, ...]] = ("key_quantizer", "value_quantizer")
    key_quantizer: nn.Module
    value_quantizer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.add_slots()

    def rounded(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) after their slots, in their own types."""
        return quantized(self.key_quantizer, key).to(key.dtype), quantized(self.value_quantizer, value).to(value.dtype)

    def kept_in_float(self, queries: Tensor, keys: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Which keys, and which values, each query has in float, bool (L, T) each; None: none. See `in_float`."""
        slots = (self.key_quantizer, self.value_quantizer)
        if not any(isinstance(each, KeyValueQuantizer) for each in slots):
            return None, None
        age = ages(queries.shape[-2], keys.shape[-2], keys.device)
        one, other = (each.in_float(age) if isinstance(each, KeyValueQuantizer) else None for each in slots)
        return one, other


class KeyValueQuantizer(nn.Module):
    """Rounds keys or values, (B, H, T, D) to the same shape. bits: 2 to 8. Subclasses give `forward`."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        levels(bits)  # refuses what is no bit-width
        self.bits = bits

    def in_float(self, age: Tensor) -> Tensor | None:
        """Which tokens a query has as they were before rounding, bool (L, T); None: none.

        age: by how many tokens each is before the query's own, int64 (L, T); negative for later tokens, which do not
        count.
        """
        return None


class TokenGroupQuantizer(KeyValueQuantizer):
    """2^bits levels from the least to the largest value of each token's groups, along D: dynamic, asymmetric, no state.

    group: values that share a range; the last group of a head may have fewer. recent: how many of the latest tokens a
    query has in float, its own included.
    """

    def __init__(self, bits: int, group: int = 32, recent: int = 0) -> None:
        super().__init__(bits)
        self.group, self.recent = group, recent

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([between_extremes(part, self.bits, -1) for part in x.split(self.group, dim=-1)], dim=-1)

    def in_float(self, age: Tensor) -> Tensor | None:
        return age < self.recent if self.recent else None

    def extra_repr(self) -> str:
        return f"bits={self.bits}, group={self.group}, recent={self.recent}"


class ChannelBlockQuantizer(KeyValueQuantizer):
    """The same along T: each channel has a range for each block of `group` tokens.

    A query has the tokens from the last multiple of `recent` on in float, as many as have come: 1 to `recent`. Tokens
    of a block that is not complete yet are among them. recent: a multiple of group.
    """

    def __init__(self, bits: int, group: int = 32, recent: int = 32) -> None:
        super().__init__(bits)
        if recent % group:
            raise ValueError(f"recent: {recent} is no multiple of group, {group}")
        self.group, self.recent = group, recent

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[-2]
        complete = tokens - tokens % self.group
        if not complete:
            return x
        blocks = x[..., :complete, :].unflatten(-2, (-1, self.group))
        rounded = between_extremes(blocks, self.bits, -2).flatten(-3, -2)
        return torch.cat([rounded, x[..., complete:, :]], dim=-2)

    def in_float(self, age: Tensor) -> Tensor | None:
        place = torch.arange(age.shape[1], device=age.device)  # of a key; that of its query is place + age
        return place >= (place + age).div(self.recent, rounding_mode="floor") * self.recent

    def extra_repr(self) -> str:
        return f"bits={self.bits}, group={self.group}, recent={self.recent}"


def between_extremes(x: Tensor, bits: int, dim: int) -> Tensor:
    """The nearest of 2^bits evenly spaced values from the least to the largest along a dimension, same shape as `x`.

    The gradient is the straight-through one; both ends have theirs. Values that are all equal stay as they are.
    """
    low = x.amin(dim, keepdim=True)
    step = (x.amax(dim, keepdim=True) - low) / (2**bits - 1)
    return low + step * round_ste((x - low) / safe_step(step))


def ages(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """By how many tokens each key is before each query, int64 (queries, keys); the queries are the last tokens."""
    places = torch.arange(keys, device=device)
    return places[keys - queries :, None] - places


def attend(
    slots: KeyValueSlots,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    products: tuple[Product, Product] | None = None,
) -> Tensor:
    """Attention to keys and values (B, H, T, D) that have gone through the slots; (B, N H, L, D), as the queries.

    The queries are of the last L tokens, N of their heads share those of one head of keys. mask: True for what may be
    attended to, or added to the scores, (B, 1, L, T) or what broadcasts to it; None: causal. scaling: of the queries.
    products: what computes queries by keys and weights by values; None: a fused pass, or plain products.
    """
    shared = query.shape[1] // key.shape[1]
    rounded = slots.rounded(key, value)
    float_keys, float_values = slots.kept_in_float(query, key)
    if products is None and float_keys is None and float_values is None:
        causal = mask is None and query.shape[-2] == key.shape[-2]
        if mask is None and not causal:
            mask = _causal(query, key)
        keys, values = _for_all_heads(shared, *rounded)
        return functional.scaled_dot_product_attention(query, keys, values, mask, dropout, causal, scale=scaling)
    scores_of, mix = products or (torch.matmul, torch.matmul)
    query, (keys, own_keys) = query * scaling, _for_all_heads(shared, rounded[0], key)
    scores = scores_of(query, keys.mT)
    if float_keys is not None:
        scores = torch.where(float_keys, scores_of(query, own_keys.mT), scores)
    weights = _masked(scores, _causal(query, key) if mask is None else mask).softmax(dim=-1, dtype=torch.float32)
    weights = functional.dropout(weights.to(query.dtype), dropout)
    values, own_values = _for_all_heads(shared, rounded[1], value)
    if float_values is None:
        return mix(weights, values)
    return mix(weights * ~float_values, values) + mix(weights * float_values, own_values)


def _for_all_heads(shared: int, *tensors: Tensor) -> list[Tensor]:
    return [each.repeat_interleave(shared, dim=1) if shared > 1 else each for each in tensors]


def _causal(query: Tensor, key: Tensor) -> Tensor:
    return ages(query.shape[-2], key.shape[-2], key.device) >= 0


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
