"""Scales of layer norms' channels moved into the next layers: the function stays, all channels get one range."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from harness.quantization import LSQQuantizer, MaxAbsQuantizer
from harness.quantization.activations import StaticQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import attach
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.norm_folding import fold_norms


class Block(nn.Module):
    """One norm before two layers; one whose output is also added later; one before a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(6) for _ in range(3))
        self.left, self.right, self.middle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.norm2(self.left(y) * self.right(y).sigmoid())
        return self.last(self.norm3(y + self.middle(y).relu()))


def inputs() -> Tensor:
    return torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(0))


def block(bits: int = 4, **quantizers: Any) -> Any:
    torch.manual_seed(0)
    model = Block().eval().requires_grad_(False)
    for norm in (model.norm1, model.norm2, model.norm3):
        norm.weight.copy_(torch.tensor([0.1, 0.5, 1.0, 1.0, 2.0, 9.0]))
        norm.bias.copy_(torch.tensor([5.0, 0.0, -1.0, 0.0, 0.5, 0.0]))
    for layer in attach(model, **quantizers).values():
        layer.fill("input_quantizer", StaticQuantizer(bits).fit(inputs()))
    return model


def folded(model: Any) -> tuple[Any, list[str]]:
    """The reference in float, and the norms that were changed in both."""
    reference = round_to_nearest(deepcopy(model), "float")
    return reference, fold_norms(model, reference, inputs())


def test_the_function_stays_and_every_channel_uses_the_whole_range() -> None:
    model, x = block(), inputs()
    before, state = round_to_nearest(deepcopy(model), "float"), deepcopy(model.state_dict())
    reference, names = folded(model)
    assert names == ["norm1"], "norm2's output goes elsewhere, too; behind norm3 there is no bias"
    torch.testing.assert_close(reference(x), before(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(round_to_nearest(deepcopy(model), "float")(x), before(x), atol=1e-4, rtol=1e-4)
    low, high = (float(each) for each in (model.left.input_quantizer.low, model.left.input_quantizer.high))
    assert (float(model.right.input_quantizer.low), float(model.right.input_quantizer.high)) == (low, high)
    ends = torch.stack(model.norm1(x).flatten(0, 1).aminmax(dim=0))
    assert float((ends[0] - low).abs().max()) < 0.06 * (high - low), "but for what the percentile leaves out"
    assert float((ends[1] - high).abs().max()) < 0.06 * (high - low)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    layers = {f"{layer}.{part}" for layer in ("norm1", "left", "right") for part in ("weight", "bias")}
    ranges = {f"{layer}.input_quantizer.{end}" for layer in ("left", "right") for end in ("low", "high")}
    assert changed == layers | ranges


def test_rounding_is_as_good_as_with_a_range_for_each_channel() -> None:
    model, x = block(), inputs()
    y, errors = model.norm1(x), {}
    plain = StaticQuantizer(4).fit(y)
    errors["tensor"] = float(((plain(y) - y) / model.norm1.weight).square().mean())
    weight = model.norm1.weight.clone()
    folded(model)
    z = model.norm1(x)
    errors["folded"] = float(((model.left.input_quantizer(z) - z) / model.norm1.weight).square().mean())
    by_channel = [StaticQuantizer(4).fit(y[..., c] - y[..., c].mean())(y[..., c] - y[..., c].mean()) for c in range(6)]
    ideal = torch.stack(by_channel, dim=-1) + y.mean(dim=(0, 1)) - y
    errors["channel"] = float((ideal / weight).square().mean())
    assert errors["folded"] < 1.3 * errors["channel"] < 0.1 * errors["tensor"]


def test_what_was_trained_is_left_alone() -> None:
    assert folded(block(weight_quantizer=lambda layer: LSQQuantizer(3)))[1] == []
    assert folded(block(weight_quantizer=lambda layer: MaxAbsQuantizer(3)))[1] == ["norm1"], "no trained grid"
    model = block()
    model.right.input_quantizer = LearnedStepQuantizer(4).fit(inputs())
    assert folded(model)[1] == []
    model = block()
    model.right.input_quantizer = StaticQuantizer(8).fit(inputs())
    assert folded(model)[1] == [], "other bits"
    model = block()
    model.norm1.weight.zero_()
    before = model.norm1.bias.clone()
    reference, _ = folded(model)
    assert bool(reference(inputs()).isfinite().all())
    assert before.isfinite().all()
