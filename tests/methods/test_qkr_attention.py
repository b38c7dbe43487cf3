"""Attention with queries and keys joined: the same function without their biases, and what of it is quantized."""

import copy
import math
from typing import Any

import pytest
import torch
from joined_common import (
    TOKENS,
    WIDTH,
    Holder,
    each_attention,
    flat,
    joined,
    network,
    rows,
    tokens,
    vit,
    zero_biases,
)
from torch import Tensor

from harness.quantization import LSQQuantizer, MaxAbsQuantizer
from harness.quantization.layers import attach, weight_layers
from harness.quantization.slots import Unfilled


def products(attention: Any, qkv: Tensor) -> Tensor:
    """W_h of all heads, (H, C, C), number by number from a fused weight."""
    queries, keys, _ = rows(attention)
    result = torch.zeros(len(queries), WIDTH, WIDTH, dtype=qkv.dtype)
    for h, (own_queries, own_keys) in enumerate(zip(queries, keys, strict=True)):
        for q, k in zip(own_queries, own_keys, strict=True):
            result[h] += torch.outer(qkv[q], qkv[k])
    return result


def naive_attention(attention: Any, stacked: Tensor, values: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """What heads give, concatenated, (B, N, H d_v), one logit after another. stacked: (H C, C); x: what enters qkv."""
    weight, bias = values
    heads, d_v = attention.num_heads, len(bias) // attention.num_heads
    scale = 1 / math.sqrt(getattr(attention, "key_dim", None) or attention.head_dim)
    out = torch.zeros(len(x), TOKENS, len(bias), dtype=x.dtype)
    for b in range(len(x)):
        for h in range(heads):
            own = stacked[h * WIDTH : (h + 1) * WIDTH]
            part = slice(h * d_v, (h + 1) * d_v)
            v = x[b] @ weight[part].T + bias[part]
            for i in range(TOKENS):
                logits = torch.stack([scale * x[b, i] @ own @ x[b, j] for j in range(TOKENS)])
                if hasattr(attention, "attention_biases"):
                    logits = logits + attention.attention_biases[h, attention.attention_bias_idxs[i]]
                out[b, i, part] = torch.softmax(logits, 0) @ v
    return out


def close(actual: Tensor, expected: Tensor) -> None:
    """Float64 sums of some tens of terms in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@each_attention
def test_the_same_as_attention_without_biases_of_queries_and_keys(kind: str, settings: dict[str, Any]) -> None:
    plain = Holder(kind, settings)
    own = joined(copy.deepcopy(plain))
    zero_biases(plain.attn, 0, 1)
    close(own(tokens()), plain(tokens()))
    assert plain.attn.qkv.bias.any(), "that of values is there"


@each_attention
def test_a_bias_of_keys_does_not_matter_and_one_of_queries_does(kind: str, settings: dict[str, Any]) -> None:
    plain = Holder(kind, settings)
    before = plain(tokens())
    zero_biases(plain.attn, 1)
    close(plain(tokens()), before)
    without_keys = joined(copy.deepcopy(plain))(tokens())
    assert (without_keys - before).abs().max() > 1e-2, "dropping that of queries makes another function"
    zero_biases(plain.attn, 0)
    close(without_keys, plain(tokens()))


@each_attention
def test_gradients_of_queries_and_keys_are_those_of_plain_attention(kind: str, settings: dict[str, Any]) -> None:
    plain = Holder(kind, settings)
    zero_biases(plain.attn, 0, 1)
    own = joined(copy.deepcopy(plain))
    x, upstream = tokens(), torch.randn_like(plain(tokens()))
    for model in (plain, own):
        (model(x) * upstream).sum().backward()
    queries, keys, values = map(flat, rows(plain.attn))
    qkv = own.attn.qkv
    close(qkv.qk.weight.grad, plain.attn.qkv.weight.grad[queries + keys])
    close(qkv.v.weight.grad, plain.attn.qkv.weight.grad[values])
    close(qkv.v.bias.grad, plain.attn.qkv.bias.grad[values])
    for name, parameter in plain.named_parameters():
        if not name.startswith("attn.qkv"):
            close(own.get_parameter(name).grad, parameter.grad)


@each_attention
def test_the_effective_weight_stacks_one_product_a_head(kind: str, settings: dict[str, Any]) -> None:
    plain = Holder(kind, settings)
    expected = products(plain.attn, plain.attn.qkv.weight.detach()).flatten(0, 1)
    heads, features = plain.attn.num_heads, len(rows(plain.attn)[0][0])
    qk = joined(plain).attn.qkv.qk
    assert qk.weight.shape == (2 * heads * features, WIDTH)
    assert qk.bias is None
    assert expected.shape == (heads * WIDTH, WIDTH)
    close(qk.quantized_weight(), expected)


def quantizers() -> list[Any]:
    return [MaxAbsQuantizer(3), MaxAbsQuantizer(2, per_channel=True), LSQQuantizer(3, per_channel=True)]


@pytest.mark.parametrize("quantizer", quantizers(), ids=lambda each: type(each).__name__ + str(each.per_channel))
@each_attention
def test_what_is_quantized_is_the_stack_of_products(kind: str, settings: dict[str, Any], quantizer: Any) -> None:
    model = Holder(kind, settings)
    attention, weight = model.attn, model.attn.qkv.weight.detach().clone()
    values, bias = flat(rows(attention)[2]), attention.qkv.bias.detach().clone()
    stacked = products(attention, weight).flatten(0, 1)
    own = copy.deepcopy(quantizer).fit(stacked)
    seen: dict[str, Tensor] = {}
    name = "proj" if kind == "tiny_vit" else "norm"
    getattr(attention, name).register_forward_pre_hook(lambda module, args: seen.update(heads=args[0]))
    entering = attention.norm(tokens()) if kind == "tiny_vit" else tokens()
    qk = joined(model).attn.qkv.qk
    attach(model)
    qk.fill("weight_quantizer", own)
    model(tokens())
    close(seen["heads"], naive_attention(attention, own(stacked), (weight[values], bias[values]), entering))
    codes = own.codes(qk.weight_transform(qk.weight))
    assert codes.shape == (attention.num_heads * WIDTH, WIDTH)
    shared = 1 if not own.per_channel else attention.num_heads * WIDTH
    assert own.step(stacked).numel() == shared
    quantized = qk.quantized_weight()
    assert quantized.shape == codes.shape
    levels = [group.unique().numel() for group in (quantized if own.per_channel else [quantized])]
    assert 2 < max(levels) <= 2**own.bits - 1


def test_a_channel_of_the_quantizer_is_a_feature_of_the_token_that_asks() -> None:
    """Steps are shared along rows: a feature of queries that is large coarsens its own row of each head alone."""
    model = Holder("vit", {"num_heads": 2})
    with torch.no_grad():
        model.attn.qkv.weight[:WIDTH, 5] *= 100  # W_q of both heads: how feature 5 asks
    qk = joined(model).attn.qkv.qk
    steps = MaxAbsQuantizer(3, per_channel=True).step(qk.quantized_weight()).flatten()
    assert sorted(steps.topk(2).indices.tolist()) == [5, WIDTH + 5]
    assert steps.topk(3).values[1] > 10 * steps.topk(3).values[2]


MASKS: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.eye(TOKENS, dtype=torch.bool) | (torch.arange(TOKENS) == 2)},
    "added": {"attn_mask": torch.linspace(-2, 2, 2 * TOKENS * TOKENS).double().sin().view(2, TOKENS, TOKENS)},
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_dropout_are_timms(mask: str) -> None:
    plain = Holder("vit", {"num_heads": 2, "attn_drop": 0.5, "proj_drop": 0.3})
    zero_biases(plain.attn, 0, 1)
    own = joined(copy.deepcopy(plain))
    outputs = []
    for model in (plain, own):
        torch.manual_seed(2)
        outputs.append(model.attn(tokens(), **MASKS[mask]))
    close(outputs[1], outputs[0])
    assert not torch.equal(own.attn(tokens()), own.attn(tokens())), "dropout draws"
    assert not torch.allclose(own.eval()(tokens()), outputs[1])


@pytest.mark.parametrize(
    ("settings", "count"),
    [(vit(), 2), ({"name": "tiny_vit", "depths": (1, 1, 1, 1)}, 3), ({"name": "timm:test_vit"}, 6)],
)
def test_whole_networks_keep_their_function(settings: dict[str, Any], count: int) -> None:
    model = network(**settings)
    held = {name: module for name, module in model.named_modules() if not name.endswith("qkv")}
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "qkv"):
            zero_biases(module, 0, 1)
    joined(model)
    now = dict(model.named_modules())
    assert all(now[name] is module for name, module in held.items()), "every other module object stays"
    assert len([name for name in now if name.endswith("qkv.qk")]) == count
    assert {name for name in weight_layers(model) if ".qkv" in name} == {
        f"{name}.{part}" for name in weight_layers(plain) if name.endswith("qkv") for part in ("qk", "v")
    }
    images = torch.rand(2, 3, 32, 32)
    # fp32: the products are rounded where queries and keys were
    torch.testing.assert_close(model(images), plain(images), rtol=1e-3, atol=2e-5)
    model.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_products_in_fp32_under_autocast_and_channels_last() -> None:
    model = joined(network(**vit())).to(memory_format=torch.channels_last)
    layer = model.get_submodule("blocks.0.attn.qkv.qk")
    seen = {}
    layer.weight_transform.register_forward_hook(lambda module, args, output: seen.update(weight=output))
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert seen["weight"].dtype == torch.float32
    assert torch.equal(seen["weight"], layer.weight_transform(layer.weight))
    # bf16 has 8 bits; some tens of products and sums of it in a row
    torch.testing.assert_close(logits.float(), model(images), rtol=0.1, atol=0.1)


def test_new_layers_take_over_what_the_old_one_was() -> None:
    model: Any = network(**vit())
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    model.blocks[1].attn.qkv.bias.requires_grad_(False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (block.attn.qkv for block in joined(model).blocks)
    assert torch.equal(torch.get_rng_state(), before), "what dropout draws next stays"
    assert not any(module.training for module in model.modules() if not isinstance(module, Unfilled))
    assert [p.requires_grad for p in (first.qk.weight, first.v.weight, first.v.bias)] == [False, False, True]
    assert [p.requires_grad for p in (second.qk.weight, second.v.weight, second.v.bias)] == [True, True, False]
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_no_graph_breaks() -> None:
    model = joined(network(**vit(depth=1)))
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(4))
    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_differentiable_twice() -> None:
    model = joined(Holder("vit", {"num_heads": 3}))
    weight = model.attn.qkv.qk.weight
    (first,) = torch.autograd.grad(model(tokens()).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.abs().sum(), weight)
    assert second.abs().max() > 1e-3
