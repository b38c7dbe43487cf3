"""WKVQuant: folding that changes nothing, each part against none, learning, points, other decoders."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from decoder_common import CALIBRATION, Decoder, decoded, decoder, output_error, tokens, with_outliers
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import KeyValueConfig
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints, point_of
from harness.methods._blocks import BlockInputs, decoder_blocks
from harness.methods._reconstruction import Reconstruction
from harness.methods.base import Context
from harness.methods.wkvquant import WkvQuant
from harness.quantization import LSQQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.key_value_points import key_value_slots
from harness.quantization.key_value_smoothing import Projections, SmoothedGroupQuantizer, paired, relative_to_head
from harness.quantization.layers import attach, weight_layers

CONTEXT = Context(kv=KeyValueConfig(group=8))
#: Each part off.
OFF = {"past_only": False, "smoothing": False, "clipping": False, "blocks_ahead": 0, "iterations": 0}


def deployed(model: Any, point: Any = "w8kv3", context: Context = CONTEXT, **settings: Any) -> Any:
    """As the evaluator does it."""
    copy, at = deepcopy(model), point_of(point)
    method = WkvQuant(WkvQuant.Config(**{"sequences": 8, "batch": 4, "iterations": 0, **settings}), context)
    method.deploy(copy, at, CALIBRATION)
    how = (context.scale, context.quantizer, context.exclude, context.activations)
    return round_to_nearest(copy, at, *how, kv=context.kv)


def error(source: nn.Module, point: Any = "w8kv3", **settings: Any) -> float:
    return output_error(deployed(source, point, **settings), source, tokens(seed=1))


def first_attention(model: Any) -> Any:
    return model.network.model.layers[0].self_attn


# Folding


@pytest.mark.parametrize("pairs", [True, False])
def test_scales_move_into_the_projections(pairs: bool) -> None:
    """Only if RoPE turns channels of one scale into one another."""
    model, source = decoder(attention_bias=True), decoder(attention_bias=True)
    attention = first_attention(model)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        layer.bias.normal_()
    source.load_state_dict(model.state_dict())
    projections = Projections.of(attention, heads=2, size=8)
    assert projections is not None
    assert projections.shared == 2
    half = torch.linspace(0.5, 3, 8).view(2, 4)
    key_scale = torch.cat([half, half if pairs else half.flip(-1)], -1)
    for name, factor in projections.factors(key_scale, torch.linspace(2, 0.2, 16).view(2, 8)).items():
        layer = getattr(attention, name)
        layer.weight *= factor
        if layer.bias is not None and name != "o_proj":
            layer.bias *= factor[:, 0]
    assert (output_error(model, source, tokens()) < 1e-9) == pairs


def test_projections_that_do_not_fit() -> None:
    assert Projections.of(nn.Linear(3, 3), 1, 3) is None
    assert Projections.of(first_attention(decoder()), heads=4, size=8) is None, "two heads have keys"


def test_sizes() -> None:
    assert paired(torch.tensor([[1.0, 2, 5, 0]])).tolist() == [[5, 2]]
    found = relative_to_head(torch.tensor([[1.0, 4], [0, 3]]))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 2]))
    assert bool(found.isfinite().all())


# Its parts


def test_with_every_part_off_it_is_round_to_nearest() -> None:
    source = decoder()
    found, nearest = deployed(source, "w3kv3", **OFF), round_to_nearest(deepcopy(source), "w3kv3", kv={"group": 8})
    assert output_error(found, nearest, tokens()) == 0
    for one, other in zip(found.parameters(), nearest.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fold", [True, False])
def test_smoothing_lowers_the_error_with_outlier_channels(fold: bool) -> None:
    source = with_outliers(decoder())
    plain, smooth = (error(source, **OFF | {"smoothing": on, "fold": fold}) for on in (False, True))
    assert smooth < 0.5 * plain


def test_it_takes_the_scale_and_not_only_the_shift() -> None:
    """Outliers on both sides of 0, which no shift helps."""
    source = with_outliers(decoder())
    shift_alone, both = (error(source, **OFF | {"smoothing": True, "power": power}) for power in (0, 1))
    assert both < 0.5 * shift_alone


def test_the_shift_alone_takes_what_all_tokens_have_in_common() -> None:
    """A value channel of each head that is far from 0 in all tokens."""
    source = decoder(attention_bias=True)
    for layer in source.network.model.layers:
        layer.self_attn.v_proj.bias[1 :: layer.self_attn.head_dim] += 20
    plain, shifted = (error(source, **OFF | {"smoothing": on, "power": 0}) for on in (False, True))
    assert shifted < 0.2 * plain


def test_scales_are_folded_into_layers_with_biases() -> None:
    source = decoder(attention_bias=True)
    for layer in source.network.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.self_attn.get_submodule(name).bias.normal_()
    model = deployed(source, "w8kv8", smoothing=True)
    quantizers = [slots.key_quantizer for slots in key_value_slots(model).values()]
    assert all(bool((each.scale == 1).all()) for each in quantizers), "none is left with the cache"  # type: ignore
    assert output_error(model, source, tokens()) < 0.1


@pytest.mark.parametrize("point", ["w8kv2", "w8kv3", "w8kv4"])
def test_past_only_is_closer_than_rounding_all(point: str) -> None:
    assert error(decoder(), point, **OFF | {"past_only": True}) < error(decoder(), point, **OFF)


SETTINGS: list[dict[str, Any]] = [{}, {"loss": "mse"}, {"blocks_ahead": 0}, {"smoothing": False}]


@pytest.mark.parametrize("settings", [SETTINGS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS[1:])])
def test_learning_lowers_the_error(settings: dict[str, Any]) -> None:
    source = decoder()
    start, learned = (deployed(source, "w3kv2", iterations=n, **settings) for n in (0, 20))
    before, after = (output_error(each, source, tokens()) for each in (start, learned))
    assert after < before


@pytest.mark.slow
def test_clipping_lowers_the_error_of_weights() -> None:
    source = decoder()
    alone = {"smoothing": False, "past_only": True}
    plain, clipped = (error(source, "w3kv8", iterations=n, **alone) for n in (0, 30))
    assert clipped < plain


def test_a_block_learns_on_what_deployed_blocks_before_it_give(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Any] = []
    monkeypatch.setattr(Reconstruction, "learn", lambda self, xs, targets: learned.append(xs))
    model = deployed(decoder(), "w3kv2")
    came: list[Tensor] = []
    last = model.network.model.layers[1]
    last.register_forward_pre_hook(lambda _, inputs: came.append(inputs[0]))
    with torch.no_grad():
        model(tokens())
    torch.testing.assert_close(torch.cat(learned[1]), came[0])


@pytest.mark.slow
def test_blocks_after_it_count() -> None:
    source = decoder()
    own, further = (deployed(source, "w3kv2", iterations=5, blocks_ahead=ahead) for ahead in (0, 1))
    last = "network.model.layers.1.mlp.up_proj"
    first = "network.model.layers.0.mlp.up_proj"
    assert not torch.equal(own.get_submodule(first).weight, further.get_submodule(first).weight)
    assert last in weight_layers(own)


# Whole networks


def bits_per_token(model: nn.Module, sequences: Tensor) -> float:
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(sequences)[:, :-1].flatten(0, 1), sequences[:, 1:].flatten())
    return float(loss) / torch.log(torch.tensor(2.0)).item()


def test_eight_bits_are_float_but_for_a_hundredth_of_a_bit() -> None:
    source = decoder()
    for parameter in source.network.lm_head.parameters():
        parameter *= 0.3  # or the loss of random logits is 20 bits
    found = deployed(source, "w8kv8", iterations=1)
    assert abs(bits_per_token(found, tokens()) - bits_per_token(source, tokens())) < 0.01


def test_decoding_with_a_cache_equals_the_masked_pass() -> None:
    model = deployed(decoder(), "w4kv3", iterations=1)
    with torch.no_grad():
        torch.testing.assert_close(decoded(model, tokens(2)), model(tokens(2)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_network_is_always_deployed_alike() -> None:
    one, other = (deployed(decoder(), "w4kv3", iterations=3) for _ in range(2))
    assert output_error(one, other, tokens()) == 0


def test_weights_are_on_grids_of_their_bits() -> None:
    source = decoder()
    model = deployed(source, "w3kv3", iterations=1)
    assert all(len(layer.weight.unique()) <= 7 for layer in weight_layers(model).values())
    slots = key_value_slots(model)["network.model.layers.1.self_attn"]
    assert isinstance(slots.key_quantizer, SmoothedGroupQuantizer)
    assert (slots.key_quantizer.bits, slots.key_quantizer.group, slots.key_quantizer.recent) == (3, 8, 1)
    assert bool((slots.key_quantizer.scale == 1).all()), "folded"
    assert not bool((slots.key_quantizer.shift == 0).all())
    assert output_error(source, decoder(), tokens()) == 0, "the source is as it was"


@pytest.mark.slow
def test_networks_trained_through_quantizers() -> None:
    model = decoder().requires_grad_(True)
    attach(model, weight_quantizer=lambda layer: LSQQuantizer(3))
    source = round_to_nearest(deepcopy(model), "float")
    start, learned = (
        output_error(deployed(model, "w3kv4", iterations=n, past_only=False), source, tokens()) for n in (0, 15)
    )
    assert learned < start


@pytest.mark.slow
def test_other_decoders_keep_scales_with_the_cache_where_they_cannot_fold() -> None:
    """Qwen 3 has norms behind the projections of queries and keys."""
    source = decoder(family="Qwen3", head_dim=8)
    for layer in source.network.model.layers:
        for place in (1, 5):
            layer.self_attn.k_norm.weight[place] *= 20
            layer.self_attn.q_norm.weight[place] /= 20
    folded, kept = (deployed(source, "w8kv3", **OFF | {"smoothing": True, "fold": fold}) for fold in (True, False))
    assert output_error(folded, kept, tokens()) == 0
    slots = next(iter(key_value_slots(folded).values()))
    assert isinstance(slots.key_quantizer, SmoothedGroupQuantizer)
    assert not bool((slots.key_quantizer.scale == 1).all())
    assert error(source, **OFF | {"smoothing": True}) < error(source, **OFF)


# Points


def test_points_without_keys_and_values_are_left_alone() -> None:
    assert not WkvQuant.serves(BitWidths(4, 8))
    model = decoder()
    WkvQuant(WkvQuant.Config(), CONTEXT).deploy(model, BitWidths(4), CALIBRATION)
    assert output_error(model, decoder(), tokens()) == 0


def test_points_by_layer_and_excluded_layers() -> None:
    point = LayerPoints.of({"*": 4, "network.model.layers.1.*": "w4kv2"})
    model = deployed(decoder(), point)
    assert [getattr(slots.key_quantizer, "bits", None) for slots in key_value_slots(model).values()] == [None, 2]
    context = Context(exclude=("*.k_proj",))
    model = deployed(decoder(), "w8kv8", context, iterations=0)
    assert output_error(model, decoder(), tokens()) < 0.1, "its weight in float is divided by the scale, too"


def test_a_network_of_another_form_is_refused() -> None:
    model = Decoder()
    model.network.model.layers = nn.Sequential(*model.network.model.layers)  # type: ignore[assignment]
    with pytest.raises(UserError, match="no list of blocks"):
        decoder_blocks(model)


def test_blocks_run_by_themselves() -> None:
    model = decoder()
    inputs = BlockInputs(model, tokens(), batch=3)
    assert len(inputs) == 3
    x = inputs.first[2]
    with torch.no_grad():
        for name, block in decoder_blocks(model).items():
            x = inputs.run(name, block, x, 2)
        logits = model.network.lm_head(model.network.model.norm(x))
        torch.testing.assert_close(logits, model(tokens()[6:]))
