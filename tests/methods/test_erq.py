"""ERQ on whole networks: errors of layers, points, quantizers of inputs, repeatability, accuracy at 8 bits."""

from collections import Counter
from copy import deepcopy
from functools import cache, partial
from typing import Any

import pytest
import torch
from test_gptq import CALIBRATION, correlated, network
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.config_base import ActivationsConfig, QuantizerConfig
from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.methods.base import Context, observed_inputs
from harness.methods.erq import Erq
from harness.models import build_model
from harness.quantization import ActivationQuantizer, StaticQuantizer
from harness.quantization.deploy import round_rest
from harness.quantization.layer_inputs import columns, inputs_of, weight_rows
from harness.quantization.layers import attach, weight_layers
from harness.quantization.log_sqrt2 import LogSqrt2Quantizer
from harness.training.build import build
from harness.training.config import complete, component
from harness.training.evaluator import evaluate_all
from harness.training.loop import train

W3A4 = BitWidths(3, 4)
QUICK = Context(activations=ActivationsConfig(calibration_batches=1))
VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2, "patch": 2}


def deployed(model: Any, point: Any = W3A4, context: Context = QUICK, **settings: Any) -> Any:
    """As the evaluator does it: ERQ, then rounding to nearest of what it leaves."""
    copy = deepcopy(model)
    Erq(Erq.Config(**{"images": 192, **settings}), context).deploy(copy, point, CALIBRATION)
    how = (context.scale, context.quantizer, context.exclude, context.activations)
    return round_rest(copy, point, *how, calibration=observed_inputs(copy, CALIBRATION, context))


def rounded(model: Any, point: Any = W3A4) -> Any:
    return round_rest(deepcopy(model), point, calibration=observed_inputs(model, CALIBRATION, QUICK))


@cache
def vit() -> nn.Module:
    """With channels of layer norms that differ in size."""
    model = build_model(component("model", VIT), (3, 6, 6), 10, seed=0).eval().requires_grad_(False)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.copy_(torch.logspace(-1, 1, 16))
            if name.endswith(("qkv", "fc1", "head")):
                module.weight.normal_(0, 0.3)  # type: ignore[union-attr, operator]
    return model


def layer_errors(found: Any, model: Any) -> list[float]:
    """Of each layer's output: float inputs of the network, rounded as deployed, against the float output."""
    errors = []
    for index in (0, 2, 5):
        layer: Any = attach(deepcopy(model))[str(index)]
        (x,) = inputs_of(model, model[index], CALIBRATION.images(100), through=nn.Identity())
        seen = found[index].input_quantizer(x)
        own, source = (weight_rows(layer, each[index].weight) for each in (found, model))
        off = (found[index].bias - model[index].bias).view(len(own), 1, -1)
        total = 0.0
        for part, plain in zip(columns(layer, seen), columns(layer, x)):
            total += float((part @ own.transpose(1, 2) + off - plain @ source.transpose(1, 2)).square().sum())
        errors.append(total)
    return errors


def test_each_part_lowers_the_errors_of_layers() -> None:
    model = network().requires_grad_(False)
    none = {"ridge_inputs": 1e4, "ridge_weights": 1e4, "flips": 0}
    found = {
        "nearest": rounded(model),
        "refined": deployed(model, **{**none, "flips": 100}),
        "ridge": deployed(model, ridge_inputs=0.01, ridge_weights=0.01, flips=0),
        "full": deployed(model, ridge_inputs=0.01, ridge_weights=0.01),
    }
    errors = {name: torch.tensor(layer_errors(each, model)) for name, each in found.items()}
    better = {name: bool((each < errors["nearest"]).all()) for name, each in errors.items() if name != "nearest"}
    assert all(better.values()), better
    gains = (errors["full"] / errors["refined"]).log()  # in a single layer, grids differ more than errors do
    assert float(gains.mean()) < -0.03
    images = correlated(7)
    outputs = model(images)
    assert (found["full"](images) - outputs).norm() < 0.8 * (found["nearest"](images) - outputs).norm()


def test_weights_and_inputs_are_on_grids_of_their_bits() -> None:
    for model in (network(), vit()):
        for grid in ("run", "channel", "dual"):
            found = deployed(model, grid=grid, images=48)
            for name, layer in weight_layers(found).items():
                rows: Any = layer.weight.flatten(1) if grid != "run" else layer.weight.flatten()[None]
                assert layer.deployed  # type: ignore[union-attr]
                most = 16 if grid == "dual" and name.endswith(("qkv", "fc1")) else 8
                assert max(len(row.unique()) for row in rows) <= most, (name, grid)
                if most == 16 and name.endswith("qkv"):
                    assert max(len(row.unique()) for row in rows) > 8
        quantizers = {n: m for n, m in found.named_modules() if isinstance(m, ActivationQuantizer)}
        assert {each.bits for each in quantizers.values()} == {4, 8}
        counts: dict[ActivationQuantizer, int] = {}
        for quantizer in quantizers.values():
            quantizer.register_forward_hook(partial(count, counts))
        found(correlated(3))
        assert set(counts) == set(quantizers.values())
        assert all(each <= 2**quantizer.bits for quantizer, each in counts.items())


def count(counts: dict[ActivationQuantizer, int], quantizer: Any, args: tuple[Tensor], output: Tensor) -> None:
    counts[quantizer] = len(quantizer.codes(args[0]).unique())


def test_transformers_get_folded_norms_and_logarithmic_scores() -> None:
    model = vit()
    found: Any = deployed(model)
    block = found.blocks[0]
    assert isinstance(block.attn.av_matmul.input_quantizer, LogSqrt2Quantizer)
    assert isinstance(block.attn.qk_matmul.input_quantizer, StaticQuantizer)
    for name, kept in (("norm1", False), ("norm2", False), ("norm", True)):
        own = (found if kept else block).get_submodule(name).weight
        assert torch.equal(own, (model if kept else model.blocks[0]).get_submodule(name).weight) == kept  # type: ignore
    plain: Any = deployed(model, norms="kept", log_scores_up_to=0)
    assert isinstance(plain.blocks[0].attn.av_matmul.input_quantizer, StaticQuantizer)
    assert torch.equal(plain.blocks[0].norm1.weight, model.blocks[0].norm1.weight)  # type: ignore
    images = correlated(7)
    outputs = model(images)
    errors = [float((each(images) - outputs).norm()) for each in (found, deployed(model, norms="kept"), rounded(model))]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < 0.8 * errors[2]
    released: Any = deployed(model, official_quirks=True)
    assert released.blocks[0].attn.av_matmul.input_quantizer.extra_level


def test_a_second_time_gives_the_same_and_the_source_stays() -> None:
    for model in (network(), vit()):
        state, modules = deepcopy(model.state_dict()), Counter(map(type, model.modules()))
        first = deployed(model).state_dict()
        torch.rand(3)
        second = deployed(model).state_dict()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert Counter(map(type, model.modules())) == modules


@pytest.mark.parametrize("point", [BitWidths(), BitWidths(3), BitWidths(4, None, 4)])
def test_points_without_activations_are_not_served(point: BitWidths) -> None:
    assert not Erq.serves(point)
    assert Erq.serves(W3A4)
    model: Any = network()
    Erq(Erq.Config(), Context()).deploy(model, point, CALIBRATION)
    assert all(torch.equal(value, network().state_dict()[key]) for key, value in model.state_dict().items())
    assert not any(getattr(layer, "deployed", False) for layer in model)


def test_points_by_layer_and_excluded_layers() -> None:
    model = network()
    points = LayerPoints.of({"0": "w2a4", "2": "float", "*": 4})
    found = deployed(model, points)
    assert [len(found[index].weight.unique()) for index in (0, 5)] == [3, 15]
    assert torch.equal(found[2].weight, model[2].weight)
    assert [isinstance(found[index].input_quantizer, StaticQuantizer) for index in (0, 2, 5)] == [True, False, False]
    context = Context(exclude=("0",), activations=ActivationsConfig(first_last="same"))
    left = deployed(model, W3A4, context)
    assert torch.equal(left[0].weight, model[0].weight)
    assert left[2].deployed


def test_layers_see_float_inputs_rounded_once_or_the_deployed_network() -> None:
    model = network()
    released, sequential = deployed(model), deployed(model, inputs="deployed")
    assert torch.equal(released[0].weight, sequential[0].weight), "nothing is before it"
    assert not torch.equal(released[5].weight, sequential[5].weight)
    images, outputs = correlated(7), model(correlated(7))
    assert (sequential(images) - outputs).norm() < (released(images) - outputs).norm()


def test_patches_are_not_fitted_to_rounded_inputs() -> None:
    """With few levels of their input, another convolution's float weights would move."""
    context = Context(activations=ActivationsConfig(first_last="same"))
    errors = {}
    for stride, features in ((2, 72), (1, 200)):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Conv2d(3, 8, 2, stride=stride), nn.Flatten(), nn.Linear(features, 4))
        found = [deployed(model, BitWidths(8, 2), context, ridge_inputs=each) for each in (1e-4, 1e4)]
        errors[stride] = float((found[0][0].weight - found[1][0].weight).abs().max())
    assert errors[2] == 0 < errors[1]


def test_token_ranges_quantized_norms_and_a_network_without_biases() -> None:
    tokens = Context(activations=ActivationsConfig(granularity="token", range="max"))
    found: Any = deployed(vit(), W3A4, tokens)
    assert torch.equal(found.blocks[0].norm1.weight, vit().blocks[0].norm1.weight)  # type: ignore
    assert isinstance(found.blocks[0].attn.av_matmul.input_quantizer, LogSqrt2Quantizer)
    norms = Context(quantizer=QuantizerConfig(norms="quantized"))
    assert len(deployed(vit(), W3A4, norms).blocks[0].norm1.weight.unique()) <= 7
    bare: Any = nn.Sequential(nn.Flatten(), nn.Linear(108, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False))
    found = deployed(bare.eval())
    assert found[1].bias is None
    assert len(found[1].weight.unique()) <= 7
    images = correlated(7)
    assert (found(images) - bare(images)).norm() < (rounded(bare)(images) - bare(images)).norm()


def session(model: dict[str, Any], epochs: int) -> Any:
    raw = {
        "methods": "none",
        "watch_bit": 3,
        "model": model,
        "data": {"name": "digits"},
        "train": {"epochs": epochs, "batch_size": 64, "learning_rate": 3e-3, "optimizer": "adam", "precision": "fp32"},
        "deploy": {"bits": ["w8a8"], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    found = build(complete(raw))
    train(found, lambda metrics: None)
    return found


@pytest.mark.parametrize(
    "model",
    [{"name": "mlp5", "width": 32, "depth": 3}, pytest.param({**VIT, "patch": 4, "width": 32}, marks=pytest.mark.slow)],
    ids=["mlp", "vit"],
)
def test_at_8_bits_accuracy_moves_by_a_tenth_of_a_point_at_most(model: dict[str, Any]) -> None:
    one = session(model, 6)
    networks = [one.evaluator.deployed(one.model, point, "erq") for point in ("float", "w8a8")]
    splits = [one.dataset.train, one.dataset.val, one.dataset.test]
    counts = [evaluate_all(networks, one.evaluator.context.task, one.dataset, split, 512) for split in splits]
    right = [sum(found.figures[0] * found.n for found in each) for each in zip(*counts)]
    total = sum(len(split) for split in splits)
    assert right[0] / total > 0.8
    assert abs(right[0] - right[1]) / total <= 1e-3


def test_a_monitor_wants_a_target_with_activations() -> None:
    raw = {
        "methods": "ste",
        "target_bit": 3,
        "model": {"name": "mlp5", "width": 12, "depth": 3},
        "data": {"name": "digits"},
        "monitor": {"deploy": "erq"},
        "deploy": {"bits": [3], "scale": "recalibrate"},
    }
    with pytest.raises(UserError, match="'erq' does nothing at 3 bits; set target_bit to a point such as w4a4"):
        complete(raw)
    complete({**raw, "target_bit": "w4a4"})


def test_tensors_are_of_the_network_that_is_deployed() -> None:
    found: Any = deployed(network())
    kinds: list[Tensor] = [found[5].weight, found[5].bias]
    assert all(each.dtype == torch.float32 and not each.requires_grad for each in kinds)
