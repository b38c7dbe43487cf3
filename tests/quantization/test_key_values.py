"""Keys and values on few levels: the quantizers, which tokens stay in float, and a cache that decoding agrees with."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from decoder_common import CALIBRATION, Decoder, decoded, decoder, output_error, tokens, with_outliers
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.methods.base import Context
from harness.methods.kivi import Kivi
from harness.quantization.deploy import round_to_nearest
from harness.quantization.key_value_points import key_value_slots
from harness.quantization.key_values import (
    ChannelBlockQuantizer,
    KeyValueQuantizer,
    KeyValueSlots,
    TokenGroupQuantizer,
    ages,
    attend,
)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_slots(model: Decoder, build: Any) -> Decoder:
    """A copy whose attention has a quantizer of keys and one of values."""
    copy = deepcopy(model)
    for slots in key_value_slots(copy).values():
        for slot in slots.SLOTS:
            slots.fill(slot, build())
    return copy


# Quantizers


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_group_of_a_token_has_evenly_spaced_levels_between_its_extremes(bits: int) -> None:
    x = 3 * some(2, 2, 5, 48) + 7  # far from 0, which need not be among the levels
    found = TokenGroupQuantizer(bits, group=20)(x)
    for part, rounded in zip(x.split(20, -1), found.split(20, -1), strict=True):  # the last group has 8
        low, high = part.amin(-1, keepdim=True), part.amax(-1, keepdim=True)
        step = (high - low) / (2**bits - 1)
        codes = (rounded - low) / step
        assert bool(((codes - codes.round()).abs() < 1e-3).all())
        assert bool(((rounded - part).abs() <= step / 2 + 1e-5).all())
        torch.testing.assert_close(rounded.amin(-1, keepdim=True), low)
        torch.testing.assert_close(rounded.amax(-1, keepdim=True), high)


def test_values_that_are_all_equal_stay() -> None:
    for quantizer in (TokenGroupQuantizer(2), ChannelBlockQuantizer(2, group=3, recent=3)):
        x = torch.full((1, 1, 6, 8), 0.3, requires_grad=True)
        found = quantizer(x)
        assert torch.equal(found, x)
        found.sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())


def test_a_channel_has_levels_of_its_own_in_each_block() -> None:
    x = some(2, 2, 11, 6) * torch.logspace(-2, 2, 6)
    found = ChannelBlockQuantizer(2, group=4, recent=8)(x)
    for block in (slice(0, 4), slice(4, 8)):
        part, rounded = x[..., block, :], found[..., block, :]
        step = (part.amax(-2, keepdim=True) - part.amin(-2, keepdim=True)) / 3
        assert bool(((rounded - part).abs() <= step / 2 * 1.001).all())
        assert all(len(channel.unique()) <= 4 for channel in rounded.transpose(-1, -2).flatten(0, 2))
    assert torch.equal(found[..., 8:, :], x[..., 8:, :]), "a block that is not complete"
    short = some(1, 1, 3, 6)
    assert torch.equal(ChannelBlockQuantizer(2, group=4, recent=8)(short), short)


def test_gradients_pass_straight_through() -> None:
    x = some(1, 1, 2, 8).requires_grad_()
    TokenGroupQuantizer(3, group=8)(x).sum().backward()
    assert x.grad is not None
    ends = (x == x.amin(-1, keepdim=True)) | (x == x.amax(-1, keepdim=True))
    torch.testing.assert_close(x.grad[~ends], torch.ones(12))


def test_bits_and_blocks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="9"):
        TokenGroupQuantizer(9)
    with pytest.raises(ValueError, match="no multiple of group"):
        ChannelBlockQuantizer(2, group=4, recent=6)


# Which tokens a query has in float


def test_the_latest_tokens() -> None:
    age = ages(3, 5)
    assert age.tolist() == [[2, 1, 0, -1, -2], [3, 2, 1, 0, -1], [4, 3, 2, 1, 0]]
    causal = age >= 0
    kept = TokenGroupQuantizer(2, recent=2).in_float(age)
    assert kept is not None
    assert (kept & causal).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert TokenGroupQuantizer(2).in_float(age) is None


def test_keys_stay_until_their_block_is_complete() -> None:
    age = ages(6, 6)
    kept = ChannelBlockQuantizer(2, group=2, recent=2).in_float(age)
    assert kept is not None
    expected = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert (kept & (age >= 0)).tolist()[:4] == expected


# Attention


@pytest.mark.parametrize("recent", [0, 1, 3])
def test_attention_by_a_plain_loop(recent: int) -> None:
    """Two query heads share one of keys; the queries are the last three of five tokens."""
    query, key, value = some(2, 4, 3, 8), some(2, 2, 5, 8, seed=1), some(2, 2, 5, 8, seed=2)
    slots, of_keys, of_values = KeyValueSlots(), *(TokenGroupQuantizer(bits, recent=recent) for bits in (2, 3))
    slots.fill("key_quantizer", of_keys)
    slots.fill("value_quantizer", of_values)
    found = attend(slots, query, key, value, None, 0.5)
    keys, values = of_keys(key), of_values(value)
    for head in range(4):
        for place in range(3):
            now = 2 + place
            old = torch.tensor([now - each >= recent for each in range(now + 1)])[:, None]
            own_keys = torch.where(old, keys[:, head // 2, : now + 1], key[:, head // 2, : now + 1])
            own_values = torch.where(old, values[:, head // 2, : now + 1], value[:, head // 2, : now + 1])
            weights = ((own_keys @ query[:, head, place, :, None])[..., 0] * 0.5).softmax(-1)
            torch.testing.assert_close(found[:, head, place], (weights[:, None] @ own_values)[:, 0])


def test_masks_of_either_kind() -> None:
    query, key, value = some(2, 2, 5, 8), some(2, 2, 5, 8, seed=1), some(2, 2, 5, 8, seed=2)
    allowed = ages(5, 5) >= 0
    added = torch.zeros(5, 5).masked_fill(~allowed, float("-inf"))
    for recent in (0, 1):
        slots = KeyValueSlots()
        slots.fill("key_quantizer", TokenGroupQuantizer(3, recent=recent))
        one, *others = (attend(slots, query, key, value, mask, 0.3) for mask in (None, allowed, added))
        for other in others:
            torch.testing.assert_close(other, one)


def test_empty_slots_change_nothing() -> None:
    query, key, value = some(1, 2, 4, 8), some(1, 2, 4, 8, seed=1), some(1, 2, 4, 8, seed=2)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(attend(KeyValueSlots(), query, key, value, None, 0.3), expected)
    assert not KeyValueSlots().state_dict()


QUANTIZERS = {
    "float": lambda: nn.Identity(),
    "tokens": lambda: TokenGroupQuantizer(3, group=4),
    "past only": lambda: TokenGroupQuantizer(3, group=4, recent=1),
    "last tokens": lambda: TokenGroupQuantizer(2, group=4, recent=5),
    "channels": lambda: ChannelBlockQuantizer(2, group=4, recent=4),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_decoding_with_a_cache_equals_the_masked_pass(name: str) -> None:
    """So what one pass measures is what a cache of so few bits gives."""
    model = in_slots(decoder(), QUANTIZERS[name])
    with torch.no_grad():
        masked, one_by_one = model(tokens(2)), decoded(model, tokens(2))
    torch.testing.assert_close(one_by_one, masked, atol=1e-5, rtol=1e-5)
    if name != "float":
        assert output_error(model, decoder(), tokens(2)) > 1e-3, "they do round"


# Deployment points


def held(model: nn.Module) -> dict[str, list[str]]:
    return {
        name: [repr(slots.key_quantizer), repr(slots.value_quantizer)] for name, slots in key_value_slots(model).items()
    }


def test_rounding_to_nearest_at_a_point() -> None:
    source = decoder()
    model = round_to_nearest(deepcopy(source), "w4kv3", kv={"group": 4})
    names = ["network.model.layers.0.self_attn", "network.model.layers.1.self_attn"]
    assert held(model) == dict.fromkeys(names, ["TokenGroupQuantizer(bits=3, group=4, recent=0)"] * 2)
    weights_alone = round_to_nearest(deepcopy(source), 4)
    assert all(isinstance(slots.key_quantizer, nn.Identity) for slots in key_value_slots(weights_alone).values())
    by_hand = in_slots(weights_alone, lambda: TokenGroupQuantizer(3, group=4))  # type: ignore[arg-type]
    assert output_error(model, by_hand, tokens()) == 0
    assert output_error(model, weights_alone, tokens()) > 1e-3


def test_points_by_layer_and_exclude() -> None:
    model = round_to_nearest(decoder(), {"*": 4, "network.model.layers.1.*": "w4kv2"})
    bits = [getattr(slots.key_quantizer, "bits", None) for slots in key_value_slots(model).values()]
    assert bits == [None, 2]
    left = "network.model.layers.0.*"
    model = round_to_nearest(decoder(), "w4kv2", exclude=left)
    assert [getattr(slots.key_quantizer, "bits", None) for slots in key_value_slots(model).values()] == [None, 2]
    assert list(key_value_slots(model, left)) == ["network.model.layers.1.self_attn"]


def test_a_network_without_slots_is_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    before = model[0].weight.clone()
    for point in ("w4kv4", {"*": "w4kv4"}):
        with pytest.raises(UserError, match="w4kv4: this network keeps no cache of keys and values"):
            round_to_nearest(model, point)
    with pytest.raises(UserError, match=r"kv\.group: 0"):
        round_to_nearest(model, 4, kv={"group": 0})
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, before)


def test_more_bits_come_closer_and_eight_are_close() -> None:
    source = decoder()
    errors = [output_error(round_to_nearest(deepcopy(source), f"w8kv{b}"), source, tokens()) for b in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    with_weights_alone = output_error(round_to_nearest(deepcopy(source), 8), source, tokens())
    assert errors[-1] < 1.5 * with_weights_alone


def test_past_only_is_closer_than_rounding_all() -> None:
    for bits in (2, 3, 4):
        of_all, of_past = (
            output_error(in_slots(decoder(), partial(TokenGroupQuantizer, bits, recent=recent)), decoder(), tokens())
            for recent in (0, 1)
        )
        assert of_past < of_all


# KIVI


def test_kivi_fills_the_slots_of_points_with_kv() -> None:
    model = decoder()
    method = Kivi(Kivi.Config(group=4, recent=8), Context())
    method.deploy(model, BitWidths(4, kv=2), CALIBRATION)
    key, value = held(model)["network.model.layers.0.self_attn"]
    assert key == "ChannelBlockQuantizer(bits=2, group=4, recent=8)"
    assert value == "TokenGroupQuantizer(bits=2, group=4, recent=9)"
    round_to_nearest(model, "w4kv2")
    assert held(model)["network.model.layers.0.self_attn"] == [key, value], "they stay"
    assert not Kivi.serves(BitWidths(4, 8))
    assert Kivi.serves(LayerPoints.of({"*": 4, "a": "w4kv4"}))
    with pytest.raises(ValueError, match="multiple of group"):
        Kivi.Config(group=4, recent=6)


def test_outliers_of_key_channels_cost_kivi_less() -> None:
    """Although the others have as many tokens in float as it has at most."""
    errors, source = {}, with_outliers(decoder())
    for name, quantizer in (("channels", ChannelBlockQuantizer(3, 4, 4)), ("tokens", TokenGroupQuantizer(3, recent=4))):
        model = deepcopy(source)
        for slots in key_value_slots(model).values():
            slots.fill("key_quantizer", deepcopy(quantizer))
        errors[name] = output_error(model, source, tokens())
    assert errors["channels"] < 0.5 * errors["tokens"]


def test_every_quantizer_says_what_it_keeps() -> None:
    assert KeyValueQuantizer(4).in_float(ages(2, 2)) is None
