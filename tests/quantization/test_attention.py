"""Attention products as modules: the same function as timm's attention, with places for quantizers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core import registry
from harness.core.errors import UserError
from harness.models import build_model
from harness.quantization.attention import expose_attention_products
from harness.quantization.layers import QuantMatMul

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
MODELS = [({"name": "vit_tiny", "depth": 2}, 2), ({"name": "tiny_vit"}, 10), ({"name": "timm:test_vit"}, 6)]


def build(name: str, **settings: Any) -> nn.Module:
    model = build_model(registry.load("model", name).Config(name=name, **settings), (3, 32, 32), 5, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():  # biases of zero would hide a mistake
        for key, parameter in model.named_parameters():
            if key.endswith(("attention_biases", "qkv.bias")):
                parameter.normal_()
    return model.eval()


def set_fused(model: nn.Module, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("settings", "count"), MODELS, ids=lambda case: case["name"] if isinstance(case, dict) else "")
def test_same_function_as_timm(settings: dict[str, Any], count: int, device: str) -> None:
    model = build(**settings).to(device)
    images = torch.rand(2, 3, 32, 32, device=device)
    set_fused(model, True)
    fused = model(images)
    set_fused(model, False)
    unfused = model(images)
    keys = list(model.state_dict())
    attention = next(module for module in model.modules() if hasattr(module, "fused_attn"))
    assert expose_attention_products(model) == count
    assert list(model.state_dict()) == keys
    assert isinstance(attention.qk_matmul, QuantMatMul), "the module object itself is to stay"
    explicit = model(images)
    assert torch.equal(explicit, unfused)
    # the fused kernel sums blockwise and scales after the product: another rounding of fp32
    torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fused, torch.zeros_like(fused))
    assert expose_attention_products(model) == count
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(images), explicit)


@pytest.mark.parametrize("name", ["vit_tiny", "tiny_vit"])
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(name).train()
    expose_attention_products(model)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Record(nn.Module):
    """A quantizer that keeps what it saw and returns zeros."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", ["vit_tiny", "tiny_vit"])
def test_slots_see_scores_and_values(name: str) -> None:
    model = build(name)
    expose_attention_products(model)
    attention: Any = next(module for module in model.modules() if hasattr(module, "qk_matmul"))
    seen: dict[str, Tensor] = {}
    attention.qk_matmul.register_forward_hook(lambda module, args, y: seen.update(q=args[0], kt=args[1]))
    attention.av_matmul.register_forward_hook(lambda module, args, y: seen.update(scores=args[0], v=args[1]))
    model(torch.rand(1, 3, 32, 32))
    heads, tokens = attention.num_heads, seen["q"].shape[2]
    assert seen["q"].shape[1:3] == (heads, tokens)
    assert seen["kt"].shape[-1] == tokens
    assert seen["v"].shape[2] == tokens
    assert seen["scores"].shape[1:] == (heads, tokens, tokens)
    # softmax rows; fp32 sums of 16 to 65 terms
    torch.testing.assert_close(seen["scores"].sum(-1), torch.ones_like(seen["scores"][..., 0]), rtol=0, atol=1e-5)
    attention.av_matmul.fill("other_quantizer", Record())
    plain = torch.rand(2, tokens, attention.qkv.in_features)
    bias = attention.proj.bias
    assert torch.equal(attention(plain), bias.expand_as(attention(plain)))


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"gated": True}, {"scale_norm": True}, {"attn_drop": 0.5}])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_every_option_of_timms_attention(options: dict[str, Any], mask: str) -> None:
    from timm.layers import Attention

    torch.manual_seed(0)
    attention: Any = Attention(24, num_heads=3, norm_layer=nn.LayerNorm, qkv_bias=True, **options)
    allowed = torch.rand(7, 7) > 0.3
    allowed.fill_diagonal_(True)
    arguments: dict[str, dict[str, Any]] = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": allowed},
        "added": {"attn_mask": torch.randn(2, 3, 7, 7)},
    }
    attention.fused_attn = False
    tokens = torch.randn(2, 7, 24)
    torch.manual_seed(1)
    expected = attention(tokens, **arguments[mask])
    assert expose_attention_products(attention) == 1
    torch.manual_seed(1)  # the same dropout
    assert torch.equal(attention(tokens, **arguments[mask]), expected)


def test_attention_that_cannot_be_opened_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2))
    with pytest.raises(UserError, match=r"'1\.self_attn'.*MultiheadAttention"):
        expose_attention_products(model)
    swin = build("timm:swin_tiny_patch4_window7_224", image_side=64)
    with pytest.raises(UserError, match=r"'layers\.0\.blocks\.0\.attn'.*WindowAttention"):
        expose_attention_products(swin)
    assert not any(hasattr(module, "qk_matmul") for module in swin.modules())


def test_a_model_without_attention_has_none() -> None:
    assert expose_attention_products(build("mlp5")) == 0
