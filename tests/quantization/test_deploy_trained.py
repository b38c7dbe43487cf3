"""round_to_nearest with each layer's own bits, with globs, and with what attach left out; library arguments by name."""

import copy
from typing import Any

import pytest
import torch
from layers_common import images, network
from torch import nn

from harness import (
    LSQQuantizer,
    MaxAbsQuantizer,
    OscillationRegularizer,
    OscillationTracker,
    attach,
    round_to_nearest,
)
from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.quantization.audit import audit

BITS = {"0": 8, "4": 3, "5.1": 2}


def mixed(exclude: Any = ()) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """Layers "0", "4" and "5.1" at 8, 3 and 2 bits, but for what is excluded; and their float weights."""
    model = network()
    latent = {name: value.clone() for name, value in model.state_dict().items()}
    widths = iter(bits for name, bits in BITS.items() if name not in exclude)
    attach(model, exclude, weight_quantizer=lambda layer: MaxAbsQuantizer(next(widths)))
    return model.eval(), latent


def weight_of(model: nn.Module, name: str) -> torch.Tensor:
    return model.get_parameter(f"{name}.weight").detach()


@pytest.mark.parametrize("bits", [None, "trained", {}, {"4": "trained"}, {"*": None}])
def test_each_layer_is_deployed_at_its_own_bits(bits: Any) -> None:
    model, latent = mixed(exclude=["4"])
    expected = model(images())
    assert round_to_nearest(model, bits) is model
    for name in ("0", "5.1"):
        assert torch.equal(weight_of(model, name), MaxAbsQuantizer(BITS[name])(latent[f"{name}.weight"])), name
    assert torch.equal(weight_of(model, "4"), latent["4.weight"])
    assert type(model[4]) is nn.Linear
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("exclude", ["4", ["4"], ("4", "5.*"), {"4", "0"}])
def test_what_attach_left_out_stays_as_it_is(exclude: Any) -> None:
    model, latent = mixed(exclude)
    left = [name for name in BITS if name in exclude or name[:2] + "*" in exclude]
    copied = copy.deepcopy(model)
    round_to_nearest(copied, 4)
    for name in BITS:
        kept = torch.equal(weight_of(copied, name), latent[f"{name}.weight"])
        assert kept == (name in left), name
    assert list(copied.state_dict()) == list(latent)
    named = round_to_nearest(copy.deepcopy(model), {"4": 2, "*": 8})
    assert torch.equal(weight_of(named, "4"), MaxAbsQuantizer(2)(latent["4.weight"])), "asked for by its very name"


def test_modules_that_cannot_be_quantized_are_excluded_once() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    attach(model, "attention*", weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    before = model["attention"].in_proj_weight.clone()  # type: ignore[operator, union-attr]
    round_to_nearest(model)
    assert torch.equal(model["attention"].in_proj_weight, before)  # type: ignore[arg-type]
    assert len(weight_of(model, "head").unique()) <= 7


def test_a_layer_that_a_later_attach_takes_in_is_excluded_no_more() -> None:
    model = network()
    attach(model, ["5.1"], weight_quantizer=lambda layer: MaxAbsQuantizer(3))
    attach(model, ["0", "4"], weight_quantizer=lambda layer: MaxAbsQuantizer(8))
    latent = {name: weight_of(model, name).clone() for name in BITS}
    round_to_nearest(model)
    for name, bits in {"0": 3, "4": 3, "5.1": 8}.items():
        assert torch.equal(weight_of(model, name), MaxAbsQuantizer(bits)(latent[name])), name


def test_names_come_before_globs_and_the_rest_is_trained() -> None:
    model, latent = mixed()
    round_to_nearest(model, {"5*": 4, "5.1": 6, "?": "float", "0": 5})
    assert torch.equal(weight_of(model, "5.1"), MaxAbsQuantizer(6)(latent["5.1.weight"]))
    assert torch.equal(weight_of(model, "4"), latent["4.weight"])
    assert torch.equal(weight_of(model, "0"), MaxAbsQuantizer(5)(latent["0.weight"]))
    partial, latent = mixed()
    round_to_nearest(partial, {"0": 2})
    assert torch.equal(weight_of(partial, "0"), MaxAbsQuantizer(2)(latent["0.weight"]))
    assert torch.equal(weight_of(partial, "4"), MaxAbsQuantizer(3)(latent["4.weight"]))
    plain = network()
    latent = {name: value.clone() for name, value in plain.state_dict().items()}
    round_to_nearest(plain, {"[45]*": 3})
    assert torch.equal(weight_of(plain, "5.1"), MaxAbsQuantizer(3)(latent["5.1.weight"]))
    assert torch.equal(weight_of(plain, "0"), latent["0.weight"]), "float before, float now"
    assert type(plain[0]) is nn.Conv2d


@pytest.mark.parametrize("bits", [{"*": 2, "[45]*": 6}, {"[45]*": 6, "*": 2}, {"4": 6, "*": 2, "5*": 6}], ids=str)
def test_the_glob_of_all_counts_last_wherever_it_is_written(bits: dict[str, int]) -> None:
    model, latent = mixed()
    round_to_nearest(model, bits)
    for name, wanted in {"0": 2, "4": 6, "5.1": 6}.items():
        assert torch.equal(weight_of(model, name), MaxAbsQuantizer(wanted)(latent[f"{name}.weight"])), name


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"5.2": 3}, r"unknown layer in bits '5\.2'; did you mean '5\.1'\? \(legal: 0, 4, 5\.1\)"),
        ({"0": 3, "head*": 3}, r"unknown layer in bits 'head\*'"),
        ({"0": 3, "4": 9}, r"bits: 9 is no bit-width"),
        (
            "traned",
            r"bits: 'traned' is no bit-width; did you mean 'trained'\? \(legal: 2 to 8 or w2 to w8",
        ),
        ({"*": "flaot"}, r"did you mean 'float'"),
    ],
)
def test_mistakes_are_refused_before_anything_changes(bits: Any, message: str) -> None:
    model, latent = mixed()
    with pytest.raises(UserError, match=message):
        round_to_nearest(model, bits)
    assert all(torch.equal(value, latent[name]) for name, value in model.state_dict().items())
    assert all(isinstance(layer.weight_quantizer, MaxAbsQuantizer) for layer in attach(model).values())


def test_trained_bits_where_there_are_none() -> None:
    for model in (network(), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(UserError, match="no layer has a quantizer of its own"):
            round_to_nearest(model)
    attach(model, weight_quantizer=lambda layer: nn.Tanh())
    with pytest.raises(UserError, match="layer '0' has a Tanh, which has no bit-width; give it one"):
        round_to_nearest(model)
    round_to_nearest(model, {"0": 3})
    assert len(weight_of(model, "0").unique()) <= 4
    before = weight_of(model, "0").clone()
    assert torch.equal(weight_of(round_to_nearest(model), "0"), before), "deployed already"


def test_a_network_that_is_deployed_already_is_refused() -> None:
    images_of = [images()]
    for bits in (3, "float", {"*": 8}):
        model = round_to_nearest(network(), 8)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(UserError, match=r"every layer is deployed already.*round a copy \(copy.deepcopy\)"):
            round_to_nearest(model, bits)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    round_to_nearest(model, "w8a8", calibration=images_of)  # activations are new
    with pytest.raises(UserError, match="every layer is deployed already"):
        round_to_nearest(model, "w4a4", calibration=images_of)
    some = round_to_nearest(network(), 8, exclude="0")
    round_to_nearest(some, 3)
    assert len(weight_of(some, "0").unique()) <= 8
    assert len(weight_of(some, "4").unique()) > 8


# Arguments as a new user writes them


def test_a_single_pattern_may_be_a_string() -> None:
    for exclude in ("5.*", ["5.*"]):
        assert set(audit(network().eval(), images(), exclude).named("excluded")) >= {"5.0.bias", "5.1.weight"}
        assert list(attach(network(), exclude)) == ["0", "4"]
        assert set(OscillationTracker(network(), 3, exclude=exclude).frequencies()) == {"0", "4"}
        model = round_to_nearest(network(), 3, exclude=exclude)
        assert torch.equal(weight_of(model, "5.1"), weight_of(network(), "5.1"))
    with pytest.raises(UserError, match=r"unknown layer in exclude '5\.2'; did you mean '5\.1'"):
        attach(network(), exclude="5.2")
    for wrong in (3, None, [nn.ReLU()]):
        with pytest.raises(UserError, match=r"exclude: .* is no glob pattern of layer names"):
            attach(network(), exclude=wrong)  # type: ignore[arg-type]


def test_a_quantizer_may_be_a_dict() -> None:
    settings: dict[str, Any] = {"granularity": "channel"}
    by_dict, by_config = (
        round_to_nearest(network(), 3, quantizer=one) for one in (settings, QuantizerConfig(granularity="channel"))
    )
    assert torch.equal(weight_of(by_dict, "4"), weight_of(by_config, "4"))
    assert not torch.equal(weight_of(by_dict, "4"), weight_of(round_to_nearest(network(), 3), "4"))
    OscillationTracker(network(), 3, quantizer=settings)
    OscillationRegularizer(network(), 3, 1.0, quantizer=settings)
    uses: list[Any] = [
        lambda wrong: round_to_nearest(network(), 3, quantizer=wrong),
        lambda wrong: OscillationTracker(network(), 3, quantizer=wrong),
        lambda wrong: OscillationRegularizer(network(), 3, 1.0, quantizer=wrong),
    ]
    for use in uses:
        with pytest.raises(UserError, match=r"quantizer\.granularty: unknown key; did you mean 'granularity'"):
            use({"granularty": "channel"})
        with pytest.raises(UserError, match=r"quantizer\.range: 'maximum': unknown value.*legal: max, mse"):
            use({"range": "maximum"})
        with pytest.raises(UserError, match=r"quantizer: MaxAbsQuantizer\(.*granularity, range"):
            use(MaxAbsQuantizer(3))


def test_a_slot_wants_a_function_that_gives_a_module() -> None:
    for wrong in (MaxAbsQuantizer(3), 3):
        with pytest.raises(UserError, match=r"weight_quantizer: .* is not a function.*lambda layer"):
            attach(network(), weight_quantizer=wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"weight_quantizer: the function gave NoneType for layer '0', not a module"):
        attach(network(), weight_quantizer=lambda layer: None)  # type: ignore[arg-type, return-value]
    attach(network(), weight_quantizer=lambda layer: LSQQuantizer(3))
