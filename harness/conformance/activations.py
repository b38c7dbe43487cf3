"""What a method must do whose target has bits for activations, as w4a4. Stacks of methods are checked, too."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.conformance.common import require, require_same, result, tiny, trained
from harness.conformance.unsaved import explained
from harness.core.bits import BitWidths
from harness.core.errors import Stopped
from harness.data.base import Dataset
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.layers import weight_layers
from harness.training.build import build
from harness.training.config import RunConfig, complete
from harness.training.loop import train
from harness.training.run import RunContext, run
from harness.training.session import Session

VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2}
#: Weights and activations, and the bits of the first and the last layer's inputs.
POINTS = (("w3a3", 8), ("w4a4", 8), ("w8a8", 8))


def config(methods: Sequence[str], target: str = "w4a4", **more: Any) -> RunConfig:
    """Two epochs of three steps on digits."""
    raw = {
        "methods": [tiny(name) for name in methods],
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


def a_resumed_run_equals_an_uninterrupted_one(stack: Sequence[str], folder: Path) -> None:
    """After a stop within the second epoch."""
    wanted = config(stack)
    run(wanted, folder / "whole")
    left = iter([False] * 4)
    stopped = False
    try:
        run(wanted, folder / "parts", RunContext(should_stop=partial(next, left, True)))
    except Stopped:
        stopped = True
    require(stopped, "it must stop when asked to; it went on")
    run(wanted, folder / "parts")
    with explained(wanted, folder):
        require_same(result(folder / "parts"), result(folder / "whole"), "resumed and uninterrupted: result")


def quantizers_of_every_input_are_trained(stack: Sequence[str], constant: bool = False) -> None:
    """Of methods with quantizers of activations of their own. constant: they have nothing that moves."""
    session = build(config(stack))
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    bits = {name: quantizer.bits for name, quantizer in held(session.model).items()}
    layers = [f"{name}.input_quantizer" for name in weight_layers(session.model)]
    require(set(layers) <= set(bits), f"no quantizer in {sorted(set(layers) - set(bits))}")
    outer = [name for name, each in bits.items() if each != 4]
    require(outer == [layers[0], layers[-1]], f"first_last: 8: other bits than 4 in {outer}")
    require(any(name.endswith("av_matmul.other_quantizer") for name in bits), "attention: true: none in attention")
    train(session, lambda metrics: None)
    moved = {name for name, tensor in session.model.state_dict().items() if not torch.equal(tensor, before[name])}
    learned = {name for name in before if "put_quantizer." in name or "other_quantizer." in name}
    require(constant or moved & learned, "training moves no quantizer of an activation")


def no_input_has_more_codes_than_its_bits_allow(stack: Sequence[str]) -> None:
    """At w3a3, w4a4 and w8a8, in each slot."""
    session = build(config(stack))
    images = _images(session)
    for point, outer in POINTS:
        (found,) = session.evaluator.deployments(session.model, [("rtn", BitWidths.of(point))])
        deployed = found.model
        counts: dict[str, int] = {}
        quantizers = held(deployed)
        for name, quantizer in quantizers.items():
            quantizer.register_forward_hook(partial(_count, counts, name))
        with torch.no_grad():
            deployed(images)
        require(counts and set(counts) == set(quantizers), f"{point}: a quantizer is not called, or there is none")
        for name, count in counts.items():
            bits = quantizers[name].bits
            require(count <= 2**bits, f"{point}: {name} has {count} codes of {bits} bits")
            chosen = found.allocated.mapping.get(name.rpartition(".")[0]) if found.allocated else None
            legal = (int(point[-1]), outer) if chosen is None else (chosen.activations,)
            require(bits in legal, f"{point}: {name} has {bits} bits")


def _count(counts: dict[str, int], name: str, quantizer: Any, args: tuple[Tensor], output: Tensor) -> None:
    counts[name] = len(quantizer.codes(args[0]).unique())


def _images(session: Session) -> Tensor:
    assert isinstance(session.dataset, Dataset)
    return session.dataset.batch(session.dataset.val, slice(0, 60))[0]


def evaluation_changes_nothing_and_points_in_float_are_float(stack: Sequence[str]) -> None:
    """Ranges that follow batches in training follow none in evaluation."""
    session = trained(config(stack))
    session.model.train()
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    modules = {name: id(module) for name, module in session.model.named_modules()}
    session.evaluator.rows(session.model, "final", "val")
    now = {name: id(module) for name, module in session.model.named_modules()}
    require(now == modules, "an evaluation replaces modules")
    require_same(dict(session.model.state_dict()), before, "after an evaluation: state")
    require(all(module.training for module in held(session.model).values()), "an evaluation changes modes")
    with torch.no_grad():
        session.model.eval()(3 * _images(session))  # a range that followed these would be another one
    require_same(dict(session.model.state_dict()), before, "after a pass in evaluation mode: state")
    for point in (3, "float"):
        require(not held(session.evaluator.deployed(session.model, point)), f"at {point} activations are quantized")
    deployed = held(session.evaluator.deployed(session.model, "w4a4"))
    require(set(deployed) == set(held(session.model)), "at w4a4 other inputs are quantized than in training")
