"""round_to_nearest at points with activations: what is quantized at how many bits, by which ranges, what is refused."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from layers_common import images, network
from torch import Tensor, nn

from harness import MaxAbsQuantizer, attach, round_to_nearest
from harness.core.config_base import ActivationsConfig
from harness.core.errors import UserError
from harness.models import build_model
from harness.quantization import (
    ActivationQuantizer,
    LearnedStepQuantizer,
    MovingRangeQuantizer,
    Observed,
    StaticQuantizer,
    TokenQuantizer,
    observe,
)
from harness.quantization.inputs import fill_inputs, site_bits
from harness.quantization.observing import Site, expose, input_sites
from harness.training.config import component

TOKEN = {"granularity": "token", "range": "max"}


def held(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """The activation quantizers of a model by site."""
    return {name: each.held for name, each in input_sites(model).items() if isinstance(each.held, ActivationQuantizer)}  # type: ignore[misc]


def bits_of(model: nn.Module) -> dict[str, int]:
    return {name.removesuffix(".input_quantizer"): each.bits for name, each in held(model).items()}


def vit(name: str = "vit_tiny", shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> nn.Module:
    return build_model(component("model", {"name": name, **options}), shape, 10, seed=0)


def small_vit() -> nn.Module:
    return vit(width=16, depth=1, heads=2)


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_weights_are_rounded_as_before_and_inputs_too() -> None:
    calibration, x = [images()], images()
    only_weights = round_to_nearest(network().eval(), 4)
    model = round_to_nearest(network().eval(), "w4a4", calibration=calibration)
    for name in ("0", "4", "5.1"):
        assert torch.equal(model.get_parameter(f"{name}.weight"), only_weights.get_parameter(f"{name}.weight"))
    assert bits_of(model) == {"0": 8, "4": 4, "5.1": 8}
    assert all(isinstance(each, StaticQuantizer) and not each.training for each in held(model).values())
    seen = observe(network(), calibration)
    by_hand = round_to_nearest(network().eval(), 4)
    for name, width in {"0": 8, "4": 4, "5.1": 8}.items():
        quantizer = StaticQuantizer(width).fit(seen[f"{name}.input_quantizer"])
        by_hand.get_submodule(name).register_forward_pre_hook(lambda layer, args, quantizer=quantizer: quantizer(*args))  # type: ignore[misc]
    assert torch.equal(model(x), by_hand(x))
    assert not torch.equal(model(x), only_weights(x))
    assert model.state_dict().keys() > only_weights.state_dict().keys()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"0": 8, "4": 4, "5.1": 8}),
        ({"first_last": "same"}, {"0": 4, "4": 4, "5.1": 4}),
        ({"first_last": "float"}, {"4": 4}),
        (TOKEN, {"0": 8, "4": 4, "5.1": 8}),
    ],
)
def test_first_and_last_layer_and_granularity(settings: dict[str, Any], expected: dict[str, int]) -> None:
    model = round_to_nearest(network().eval(), "w3a4", activations=settings, calibration=iter([images(), images()]))
    assert bits_of(model) == expected
    rows = {name: getattr(each, "rows", None) for name, each in held(model).items()}
    if settings == TOKEN:
        assert rows == {"0.input_quantizer": "sample", "4.input_quantizer": "last", "5.1.input_quantizer": "last"}
        again = round_to_nearest(network().eval(), "w3a4", activations=settings)
        assert torch.equal(again(images()), model(images())), "without calibration too"
    else:
        assert set(rows.values()) == {None}


def test_only_as_many_batches_are_read_as_are_asked_for() -> None:
    read = []

    def batches() -> Any:
        for number in range(9):
            read.append(number)
            yield images() * (1 + number)

    settings = ActivationsConfig(calibration_batches=2, range="max")
    model = round_to_nearest(network().eval(), "w8a8", activations=settings, calibration=batches())
    assert read == [0, 1]
    assert float(held(model)["0.input_quantizer"].high) == pytest.approx(2 * float(images().max()))  # type: ignore[arg-type]
    seen = observe(network(), [images(), 2 * images()])
    from_observed = round_to_nearest(network().eval(), "w8a8", activations=settings, calibration=seen)
    assert torch.equal(from_observed(images()), model(images()))


def test_at_points_without_activations_the_slots_are_emptied() -> None:
    for bits in (4, "float", "w8"):
        model = round_to_nearest(deepcopy(trained(LearnedStepQuantizer)), bits)
        assert not held(model)
        assert not any("input_quantizer" in name for name in model.state_dict())


def trained(kind: Callable[..., ActivationQuantizer], bits: int = 4) -> nn.Module:
    """A network whose inputs all have quantizers that were trained at 4 bits, the first and the last at 8."""
    model = network()
    attach(model, weight_quantizer=lambda layer: MaxAbsQuantizer(bits))
    build: Callable[[int, Observed, Site], ActivationQuantizer] = lambda width, seen, site: kind(width).fit(seen)  # noqa: E731
    found = fill_inputs(model, bits, ActivationsConfig(), observe(model, [images()]), build)
    assert [each.bits for each in found.values()] == [8, 4, 8]
    with torch.no_grad():
        for parameter in (each for quantizer in found.values() for each in quantizer.parameters()):
            parameter.mul_(1.25)
    return model.eval()


@pytest.mark.parametrize("kind", [LearnedStepQuantizer, MovingRangeQuantizer])
def test_trained_quantizers_are_kept_at_their_own_bits(kind: Callable[..., ActivationQuantizer]) -> None:
    model = trained(kind)
    own = {name: each.state_dict() for name, each in held(model).items()}
    expected = model(images())
    for bits in ("w4a4", "trained", None):
        deployed = round_to_nearest(deepcopy(model), bits)
        assert {name: type(each) for name, each in held(deployed).items()} == dict.fromkeys(own, kind)
        assert torch.equal(deployed(images()), expected), "without calibration"
    calibrated = round_to_nearest(deepcopy(model), "w4a4", calibration=[3 * images()])
    assert torch.equal(calibrated(images()), expected)
    for name, each in held(model).items():
        assert all(torch.equal(value, own[name][key]) for key, value in each.state_dict().items()), "the source stays"


@pytest.mark.parametrize("kind", [LearnedStepQuantizer, MovingRangeQuantizer])
@pytest.mark.parametrize("scale", ["keep_step", "keep_range"])
def test_at_other_bits_trained_quantizers_follow_the_scale_policy(
    kind: Callable[..., ActivationQuantizer], scale: Any
) -> None:
    model = trained(kind)
    deployed = held(round_to_nearest(deepcopy(model), "w4a6", scale))
    for name, own in held(model).items():
        expected = own.at_bits(6 if name.startswith("4") else 8, scale).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in deployed[name].state_dict().items())
        assert type(deployed[name]) is kind
    with pytest.raises(UserError, match="calibration: the ranges of activations are taken from batches of inputs"):
        round_to_nearest(deepcopy(model), "w4a6")
    anew = held(round_to_nearest(deepcopy(model), "w4a6", calibration=[images()]))
    assert {name: type(each) for name, each in anew.items()} == {
        "0.input_quantizer": kind,
        "4.input_quantizer": StaticQuantizer,
        "5.1.input_quantizer": kind,
    }


def test_attention_is_quantized_where_it_can_be_reached() -> None:
    x = pixels()
    model = round_to_nearest(small_vit().eval(), "w8a4", calibration=[x])
    found = bits_of(model)
    assert found["patch_embed.proj"] == found["head"] == 8
    assert found["blocks.0.attn.qk_matmul"] == found["blocks.0.attn.av_matmul.other_quantizer"] == 4
    assert len(found) == 6 + 4
    plain = round_to_nearest(small_vit().eval(), "w8a4", calibration=[x], activations={"attention": False})
    assert len(bits_of(plain)) == 6
    assert not any("matmul" in name for name, _ in plain.named_modules())
    tokens = round_to_nearest(small_vit().eval(), "w8a8", activations=TOKEN)
    rows = {name: each.rows for name, each in held(tokens).items() if isinstance(each, TokenQuantizer)}
    assert rows["blocks.0.attn.qk_matmul.input_quantizer"] == rows["blocks.0.attn.qkv.input_quantizer"] == "last"
    assert rows["blocks.0.attn.qk_matmul.other_quantizer"] == "column"
    for each in (model, plain, tokens):
        assert torch.isfinite(each(x)).all()


def test_excluded_layers_and_attentions_stay_in_float() -> None:
    model = round_to_nearest(small_vit().eval(), "w4a4", calibration=[pixels()], exclude=["head", "blocks.0.attn*"])
    assert set(bits_of(model)) == {"patch_embed.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
    assert bits_of(model)["blocks.0.mlp.fc2"] == 8, "the last of those that are quantized"
    left = small_vit().eval()
    attach(left, "head")
    assert "head" not in bits_of(round_to_nearest(left, "w4a4", calibration=[pixels()]))
    mixed = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 4), "last": nn.Linear(4, 2)})
    round_to_nearest(mixed, "w4a4", exclude="attention*", activations=TOKEN)
    assert bits_of(mixed) == {"head": 8, "last": 8}


def test_a_mapping_says_it_all_by_itself() -> None:
    points = {"0": "w4a8", "5.1": 3, "*": "w4a4"}
    model = round_to_nearest(network().eval(), points, calibration=[images()])
    assert bits_of(model) == {"0": 8, "4": 4}
    assert len(model.get_parameter("5.1.weight").unique()) <= 7
    attention = round_to_nearest(small_vit().eval(), {"head": 8, "*": "w4a4"}, calibration=[pixels()])
    assert set(bits_of(attention).values()) == {4}
    assert "head" not in bits_of(attention)
    assert "blocks.0.attn.qk_matmul" in bits_of(attention)
    own = round_to_nearest(trained(LearnedStepQuantizer), {"4": "float"})
    assert bits_of(own) == {"0": 8, "5.1": 8}
    left = network().eval()
    attach(left, "4")
    named = round_to_nearest(left, {"4": "w4a4"}, calibration=[images()])
    assert bits_of(named) == {"4": 4}, "by its very name"


def test_other_modules_in_the_slot_are_part_of_the_network() -> None:
    for bits in ("w4a4", 4):
        model = network().eval()
        attach(model, ["0", "5.1"], input_quantizer=lambda layer: nn.Tanh())
        round_to_nearest(model, bits, calibration=[images()], activations={"first_last": "same"})
        assert isinstance(model[4].input_quantizer, nn.Tanh)


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)  # type: ignore[no-any-return]


class Closed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.fused_attn = True  # type: ignore[assignment]
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


REFUSED: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (network, {}, "calibration: the ranges of activations are taken from batches of inputs, and there are none"),
    (network, {"calibration": []}, "calibration: there is no batch"),
    (network, {"calibration": [images() / 0]}, r"what comes to 4\.input_quantizer in batch 1 has NaN"),
    (One, {"calibration": [torch.ones(2, 3)]}, "activations.first_last: 8: 'only' is the only quantized layer"),
    (One, {"activations": {**TOKEN, "first_last": "float"}}, "activations.first_last: float: 'only' is the only"),
    (network, {"activations": {"range": "mx"}}, r"activations\.range: 'mx'"),
    (network, {"activations": 8}, "activations: 8 is neither an ActivationsConfig nor a mapping"),
    (network, {"activations": {"granularity": "token", "range": "mse"}}, "wants range: max"),
    (One, {"calibration": observe(network(), [images()])}, "calibration: what was observed is of another network"),
    (
        Closed,
        {"calibration": [torch.ones(2, 3)]},
        "module 'attention': the products inside .* cannot be quantized; .*activations.attention: false",
    ),
]


@pytest.mark.parametrize(("build", "options", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_any_number_changes(
    build: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    model = build().eval()
    before = deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        round_to_nearest(model, "w4a4", **options)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not held(model)


def test_one_layer_and_closed_attention_with_the_settings_that_the_errors_name() -> None:
    one = round_to_nearest(One(), "w4a4", calibration=[torch.ones(2, 3)], activations={"first_last": "same"})
    assert bits_of(one) == {"only": 4}
    closed = round_to_nearest(Closed(), "w4a4", calibration=[torch.ones(2, 3)], activations={"attention": False})
    assert bits_of(closed) == {"first": 8, "second": 8}


def test_layers_count_as_first_and_last_in_calling_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.never, self.b, self.a = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]

    model = round_to_nearest(Backwards(), "w4a4", calibration=[torch.randn(4, 3)])
    assert bits_of(model) == {"a": 8, "b": 4, "c": 8}
    seen = observe(Backwards(), [torch.randn(4, 3)])
    copied = Backwards()
    attach(copied)
    assert list(site_bits(copied, 4, ActivationsConfig(), seen)) == list(seen)


def test_filled_slots_clash_as_others_do() -> None:
    model = trained(LearnedStepQuantizer)
    seen = observe(model, [images()])
    with pytest.raises(UserError, match="slot input_quantizer already holds LearnedStepQuantizer"):
        fill_inputs(model, 4, ActivationsConfig(), seen, lambda bits, found, site: StaticQuantizer(bits).fit(found))
    exposed = small_vit()
    attach(exposed)
    expose(exposed)
    seen = observe(exposed, [pixels()])
    quantizers = fill_inputs(
        exposed, 3, ActivationsConfig(), seen, lambda bits, found, site: MovingRangeQuantizer(bits).fit(found)
    )
    assert len(quantizers) == 10
    assert quantizers["blocks.0.attn.av_matmul.input_quantizer"].signed is False
