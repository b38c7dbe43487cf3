"""What methods must do whose target has bits for activations, as w4a4."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.core import registry
from harness.core.bits import BitWidths
from harness.core.errors import Stopped
from harness.methods import find
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import weight_layers
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train
from harness.training.run import RunContext, run
from harness.training.session import Session

METHODS = [name for name in registry.names("method") if find(name).activations]
#: Those that train quantizers of activations, and the paper's whole stack for transformers.
STACKS = [[name] for name in METHODS if find(name).activations != "calibrated"] + [["qkr", "statsq", "cga"]]
#: Run by default: a moving range, a learned step; the others are slow only by their number.
QUICK = [["ste"], ["lsq"]]


def stacks(found: list[list[str]]) -> list[Any]:
    """Parameters of a test, those beyond QUICK marked slow."""
    marks = {True: (), False: (pytest.mark.slow,)}
    return [pytest.param(each, id="+".join(each), marks=marks[each in QUICK]) for each in found]


VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}


def config(methods: list[str], target: str = "w4a4", **more: Any) -> RunConfig:
    """Two epochs of three steps on digits."""
    raw = {
        "methods": [{**find(name).tiny_config().model_dump(), "name": name} for name in methods],
        "target_bit": target,
        "model": VIT,
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"epochs": 2, "batch_size": 40, "learning_rate": 1e-2, "precision": "fp32"},
        "activations": {"calibration_batches": 2},
        "deploy": {"bits": [3, "w3a3", "w4a4", "w8a8"], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return complete(raw | more)


def held(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantizers of activations, by the names of their slots."""
    found = dict(model.named_modules())
    slots = ("input_quantizer", "other_quantizer")
    return {n: m for n, m in found.items() if isinstance(m, ActivationQuantizer) and n.endswith(slots)}


def trained(wanted: RunConfig) -> Session:
    session = build(wanted)
    train(session, lambda metrics: None)
    return session


def outcome(folder: Path) -> tuple[Any, ...]:
    record = json.loads((folder / "record.json").read_text())
    return record["rows"], (folder / "metrics.jsonl").read_text(), (folder / "best.safetensors").read_bytes()


@pytest.mark.parametrize("stack", stacks(STACKS))
def test_resumed_equals_uninterrupted_bit_for_bit(stack: list[str], tmp_path: Path) -> None:
    wanted = config(stack)
    run(wanted, tmp_path / "whole")
    left = iter([False] * 4)
    with pytest.raises(Stopped):
        run(wanted, tmp_path / "parts", RunContext(should_stop=partial(next, left, True)))
    run(wanted, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_they_train_quantizers_of_every_input(stack: list[str]) -> None:
    session = build(config(stack))
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    bits = {name: quantizer.bits for name, quantizer in held(session.model).items()}
    layers = [f"{name}.input_quantizer" for name in weight_layers(session.model)]
    assert set(layers) <= set(bits)
    assert [name for name, each in bits.items() if each != 4] == [layers[0], layers[-1]], "first_last: 8"
    assert any(name.endswith("av_matmul.other_quantizer") for name in bits), "attention: true"
    train(session, lambda metrics: None)
    moved = {name for name, tensor in session.model.state_dict().items() if not torch.equal(tensor, before[name])}
    learned = {name for name in before if "put_quantizer." in name or "other_quantizer." in name}
    assert stack == ["any_precision"] or moved & learned, "any_precision's range is a constant"


@pytest.mark.parametrize("stack", stacks([[name] for name in METHODS if name != "qkr"] + STACKS[-1:]))
def test_no_input_has_more_codes_than_its_bits_allow(stack: list[str]) -> None:
    if stack[0] == "bn_reestimation":
        stack = ["none", *stack]
    session = build(config(stack))
    images, _ = session.dataset.batch(session.dataset.val, slice(0, 60))
    for point, outer in (("w3a3", 8), ("w4a4", 8), ("w8a8", 8)):
        (found,) = session.evaluator.deployments(session.model, [("rtn", BitWidths.of(point))])
        deployed = found.model
        counts: dict[str, int] = {}
        quantizers = held(deployed)
        for name, quantizer in quantizers.items():
            quantizer.register_forward_hook(partial(_count, counts, name))
        with torch.no_grad():
            deployed(images)
        assert set(counts) == set(quantizers)
        assert counts, point
        for name, count in counts.items():
            assert count <= 2 ** quantizers[name].bits, (point, name)
            layer = name.rpartition(".")[0]
            chosen = found.allocated.mapping.get(layer) if found.allocated else None
            assert quantizers[name].bits in ((int(point[-1]), outer) if chosen is None else (chosen.activations,))


def _count(counts: dict[str, int], name: str, quantizer: Any, args: tuple[Tensor], output: Tensor) -> None:
    counts[name] = len(quantizer.codes(args[0]).unique())


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_evaluation_changes_nothing_and_points_in_float_are_float(stack: list[str]) -> None:
    session = trained(config(stack))
    session.model.train()
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    modules = {name: id(module) for name, module in session.model.named_modules()}
    session.evaluator.rows(session.model, "final", "val")
    after = session.model.state_dict()
    assert {name: id(module) for name, module in session.model.named_modules()} == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(module.training for module in held(session.model).values())
    images, _ = session.dataset.batch(session.dataset.val, slice(0, 60))
    with torch.no_grad():
        session.model.eval()(3 * images)  # a range that followed these would be another one
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.model.state_dict().items())
    for point in (3, "float"):
        assert not held(session.evaluator.deployed(session.model, point))
    assert set(held(session.evaluator.deployed(session.model, "w4a4"))) == set(held(session.model))
