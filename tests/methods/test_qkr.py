"""Query-key reparametrization as a method: what it leaves alone, refuses, trains, deploys, and its place in stacks."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from joined_common import TINY_VITS, VITS, Holder, joined, network, vit
from safetensors.torch import load_file
from timm.layers import Attention
from torch import Tensor, nn

from harness import evaluate
from harness.core.errors import UserError
from harness.methods.kure import kurtosis
from harness.quantization import MaxAbsQuantizer
from harness.quantization.attention import expose_attention_products
from harness.quantization.bilinear_attention import BilinearAttention, HeadProducts
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import QuantLayer, attach, weight_layers
from harness.quantization.slots import SlotTakenError
from harness.records.files import read_json
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train
from harness.training.run import run
from harness.training.session import Session


def test_excluded_attention_stays_as_it_is() -> None:
    plain = network(**vit())
    model: Any = joined(copy.deepcopy(plain), ("blocks.1.*.qkv", "head"))
    assert isinstance(model.blocks[0].attn, BilinearAttention)
    assert not model.blocks[0].attn.fused_attn
    assert model.blocks[1].attn.fused_attn
    assert type(model.blocks[1].attn) is Attention
    assert torch.equal(model.blocks[1].attn.qkv.weight, plain.get_parameter("blocks.1.attn.qkv.weight"))
    assert "blocks.1.attn.qkv" not in weight_layers(model, ("blocks.1.*.qkv", "head"))
    deployed = round_to_nearest(copy.deepcopy(model), 2, exclude=("blocks.1.*.qkv", "head"))
    assert torch.equal(deployed.get_parameter("blocks.1.attn.qkv.weight"), model.blocks[1].attn.qkv.weight)


def test_nothing_left_to_work_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"'qkr' finds no attention to work on: of 2 .* every qkv layer is excluded"):
        joined(network(**vit()), ("*.qkv",))


@pytest.mark.parametrize("slot", ["weight_quantizer", "weight_transform", "input_quantizer", "grad_weight_quantizer"])
def test_a_filled_slot_is_refused_before_anything_changes(slot: str) -> None:
    model: Any = network(**vit())
    attach(model)
    model.blocks[1].attn.qkv.fill(slot, nn.Tanh())
    keys = list(model.state_dict())
    with pytest.raises(SlotTakenError, match=rf"'blocks.1.attn': slot {slot} .* Tanh, .*; name the method .*first"):
        joined(model)
    assert list(model.state_dict()) == keys
    assert type(model.blocks[0].attn) is Attention


@pytest.mark.parametrize("which", ["q_norm", "k_norm"])
def test_a_norm_between_queries_and_keys_is_refused(which: str) -> None:
    model = Holder("vit", {"num_heads": 2})
    setattr(model.attn, which, nn.LayerNorm(6))
    with pytest.raises(UserError, match=rf"'attn': {which} \(LayerNorm\) comes between .*; exclude its qkv layer"):
        joined(model)
    assert type(model.attn) is Attention


@pytest.mark.parametrize("kind", ["vit", "tiny_vit"])
def test_exposed_products_are_refused(kind: str) -> None:
    model = Holder(kind, VITS[0] if kind == "vit" else TINY_VITS[0])
    expose_attention_products(model)
    with pytest.raises(SlotTakenError, match="'attn': another method works on the products of its queries and keys"):
        joined(model)


@pytest.mark.parametrize("kind", ["vit", "tiny_vit"])
def test_joined_products_have_slots_for_their_operands(kind: str) -> None:
    model: Any = joined(Holder(kind, VITS[0] if kind == "vit" else TINY_VITS[0])).eval().float()
    assert expose_attention_products(model) == 1
    tokens = torch.randn(2, 4, 12)
    plain = model(tokens)
    attention, seen = model.attn, {}
    for product in ("qk_matmul", "av_matmul"):
        for slot in ("input_quantizer", "other_quantizer"):
            hook = Shapes(seen, f"{product}.{slot}")
            getattr(attention, product).fill(slot, hook)
    assert torch.equal(model(tokens), plain)
    heads = attention.num_heads
    assert seen["qk_matmul.input_quantizer"] == (2, 4, 12)
    assert seen["qk_matmul.other_quantizer"] == (2, 12, heads * 4)
    assert seen["av_matmul.input_quantizer"] == (2, heads, 4, 4)
    assert seen["av_matmul.other_quantizer"][:3] == (2, heads, 4)


class Shapes(nn.Module):
    """Remembers the shape of what it hands on."""

    def __init__(self, seen: dict[str, tuple[int, ...]], name: str) -> None:
        super().__init__()
        self.seen, self.name = seen, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen[self.name] = tuple(x.shape)
        return x


@pytest.mark.parametrize("shared", ["layer", "weight"])
def test_a_shared_layer_is_refused(shared: str) -> None:
    model: Any = network(**vit())
    first, second = (block.attn for block in model.blocks)
    if shared == "layer":
        second.qkv = first.qkv
    else:
        second.qkv.weight = first.qkv.weight
    with pytest.raises(UserError, match=r"'qkr' would part the qkv layer of attention 'blocks.0.attn' from what"):
        joined(model)


WIDTH, HEADS = 12, 3


def run_config(methods: list[Any], **changes: Any) -> RunConfig:
    raw = {
        "methods": methods,
        "target_bit": 4,
        "model": vit(width=WIDTH, heads=HEADS, mlp_ratio=1.0),
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 3, "batch_size": 24, "learning_rate": 3e-3, "precision": "fp32"},
        "deploy": {"bits": [4], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return complete(raw | changes)


def qk_layers(session: Session) -> dict[str, QuantLayer]:
    return {name: layer for name, layer in attach(session.model).items() if name.endswith(".qk")}


def effective(layer: QuantLayer) -> Tensor:
    return layer.weight_transform(layer.weight).detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("methods", [["qkr"], ["qkr", "ste"], ["qkr", "lsq"]])
def test_training_and_deployment(methods: list[str]) -> None:
    session, lines = build(run_config(methods)), []
    before = {name: layer.weight.detach().clone() for name, layer in qk_layers(session).items()}
    assert len(before) == 2
    train(session, lines.append)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    images = session.dataset.normalized(session.dataset.val.images[:32])
    trained = session.model.eval()(images)
    for bits in range(2, 9):
        model = session.evaluator.deployed(session.model, bits)
        for name, source in qk_layers(session).items():
            weight = effective(source)
            quantizer = source.weight_quantizer if len(methods) > 1 and bits == 4 else MaxAbsQuantizer(bits)
            deployed = model.get_submodule(name).weight
            assert deployed.shape == (HEADS * WIDTH, WIDTH)
            assert torch.equal(deployed, quantizer(weight))
            assert len(deployed.unique()) <= 2**bits - 1
        assert torch.equal(model(images), trained) == (len(methods) > 1 and bits == 4)
    floating = session.evaluator.deployed(session.model, "float")(images)
    assert torch.equal(floating, trained) == (len(methods) == 1), "the same products, made beforehand"
    for name, source in qk_layers(session).items():
        moved = (source.weight.detach() - before[name]).view(2, -1).abs().amax(dim=1)
        assert bool((moved > 1e-3).all()), "queries and keys both learn, and the source still has them"
        assert isinstance(source.weight_transform, HeadProducts)


def test_alone_it_is_float_training_without_biases_of_queries_and_keys() -> None:
    short = {"epochs": 1, "batch_size": 24, "learning_rate": 3e-3, "precision": "fp32"}
    plain, own = build(run_config(["none"], train=short)), build(run_config(["qkr"], train=short))
    for name, parameter in plain.model.named_parameters():
        if name.endswith("qkv.bias"):
            of_values = torch.arange(3 * WIDTH) >= 2 * WIDTH
            parameter.register_hook(lambda gradient, kept=of_values: gradient * kept)
    for session in (plain, own):
        with torch.no_grad():  # from scratch, logits are next to nothing, and so is what queries and keys learn
            for name, parameter in session.model.named_parameters():
                if name.endswith(("qkv.weight", "qkv.qk.weight")):
                    parameter[: 2 * WIDTH] *= 10
    before = plain.model.get_parameter("blocks.0.attn.qkv.weight").detach().clone()
    for session in (plain, own):
        train(session, lambda metrics: None)
    for name, layer in qk_layers(own).items():
        trained = plain.model.get_parameter(f"{name.removesuffix('.qk')}.weight").detach()
        # fp32 sums in another order, and Adam, which makes steps of one size out of gradients of any
        torch.testing.assert_close(layer.weight.detach(), trained[: 2 * WIDTH], rtol=0, atol=5e-5)
    moved = plain.model.get_parameter("blocks.0.attn.qkv.weight").detach() - before
    assert moved[: 2 * WIDTH].abs().max() > 1e-2, "by far more than the tolerance"


def test_regularizers_see_the_products() -> None:
    session, lines = build(run_config(["qkr", "kure"], train={"epochs": 1, "batch_size": 64})), []
    train(session, lines.append)
    own = torch.stack([kurtosis(effective(layer)) for layer in attach(session.model).values()]).mean()
    assert lines[-1]["kure/kurtosis"] == pytest.approx(float(own))


@pytest.mark.parametrize("methods", [["qkr", "ste", "freezing"], ["qkr", "freezing"], ["qkr", "dampening"]])
def test_what_keeps_values_or_steps_of_each_weight_keeps_those_of_the_products(methods: list[str]) -> None:
    changes: dict[str, Any] = {"train": {"epochs": 1, "batch_size": 64}, "quantizer": {"range": "mse"}}
    changes["quantizer"]["granularity"] = "channel"
    session, lines = build(run_config(methods, **changes)), []
    train(session, lines.append)
    assert len(lines) == 1
    for layer in qk_layers(session).values():
        assert layer.quantized_weight().shape == (HEADS * WIDTH, WIDTH)


def test_a_learned_step_begins_from_the_products() -> None:
    layers = qk_layers(build(run_config(["qkr", "lsq"])))
    for layer in layers.values():
        weight = effective(layer)
        step: Any = layer.weight_quantizer.learned_step
        torch.testing.assert_close(step.detach(), 2 * weight.abs().mean() / math.sqrt(7))


def test_trackers_watch_the_products() -> None:
    session = build(run_config(["qkr", "ste"]))
    frequencies = session.tracker.frequencies()
    assert all(frequencies[name].shape == (HEADS * WIDTH, WIDTH) for name in qk_layers(session))
    assert frequencies["blocks.0.attn.qkv.v"].shape == (WIDTH, WIDTH)
    (layer, _) = qk_layers(session).values()
    with torch.no_grad():
        layer.weight[:WIDTH] *= -1  # the sign of queries: every code of a product turns round
    session.tracker.update()
    codes = MaxAbsQuantizer(4).codes(effective(layer))
    state = session.tracker.state_dict()["blocks.0.attn.qkv.qk"]
    assert torch.equal(state["code"], codes)
    assert int(state["flips"]) == int(codes.count_nonzero()) > 0


@pytest.mark.slow
def test_a_finished_run_is_rebuilt_from_its_weights(tmp_path: Path) -> None:
    short = {"epochs": 1, "batch_size": 64}
    for name, bits in (("later", [2]), ("at once", [2, 3])):
        run(run_config(["qkr", "lsq"], train=short, deploy={"bits": bits, "scale": "keep_range"}), tmp_path / name)
    assert evaluate.main([str(tmp_path / "later"), "--bits", "2,3"]) == 0
    records = [read_json(tmp_path / name / "record.json") or {} for name in ("later", "at once")]
    later, at_once = (sorted(record["rows"], key=lambda row: (row["split"], str(row["bits"]))) for record in records)
    assert later == at_once
    assert {row["bits"] for row in later} == {2, 3, 4, "float"}
    weights = load_file(tmp_path / "later/best.safetensors")
    assert weights["blocks.1.attn.qkv.qk.weight"].shape == (2 * WIDTH, WIDTH)


def test_it_needs_no_target_bit() -> None:
    assert run_config(["qkr"], target_bit=None, watch_bit=3).target_bit is None


@pytest.mark.parametrize("earlier", ["ste", "kure"])
def test_it_goes_first(earlier: str) -> None:
    sentence = f"methods: 'qkr' replaces layers that '{earlier}' would hold on to; name 'qkr' first"
    with pytest.raises(UserError, match=sentence):
        run_config([earlier, "qkr"])
    with pytest.raises(UserError, match=sentence):
        run_config([earlier, "qkr", "bn_reestimation"])


def test_what_cannot_follow_it_is_refused() -> None:
    with pytest.raises(SlotTakenError, match="weight_transform already holds HeadProducts, so Saturation cannot have"):
        build(run_config(["qkr", "satnl"]))
    with pytest.raises(
        SlotTakenError, match=r"qkv\.qk: oscillation adds its gradient to the trained weights themselves"
    ):
        build(run_config(["qkr", "oscillation"]))


@pytest.mark.parametrize("model", ["mlp5", "resnet18"])
def test_a_model_without_attention_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=f"method 'qkr' needs attention .*, and model '{model}' has none"):
        build(run_config(["qkr"], model={"name": model, "width": 8}))
