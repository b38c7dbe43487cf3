"""How a method's networks are evaluated and deployed: nothing is changed, and weights are on a grid."""

import itertools
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from harness.conformance.common import (
    Case,
    fitting,
    groups,
    most_values,
    point_of_layer,
    require,
    require_same,
    state,
    tiny,
    trained,
    trained_in_rounding,
)
from harness.core.bits import BitWidths, ScalePolicy
from harness.core.errors import Stopped
from harness.data.base import Dataset
from harness.methods import find
from harness.quantization import ActivationQuantizer
from harness.quantization.layers import weight_layers
from harness.quantization.observing import input_sites
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import complete
from harness.training.evaluator import Evaluator
from harness.training.loop import train
from harness.training.session import Session

_CROSSED: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 12, "depth": 3},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2},
}
POLICIES: tuple[ScalePolicy, ...] = ("keep_step", "keep_range", "recalibrate")


def evaluation_changes_nothing(case: Case) -> None:
    """Weights, modes, gradients, the optimizer, the method and random numbers, on both splits."""
    session = trained(case.config())
    session.model.train()
    before = state(session)
    session.evaluator.rows(session.model, "final", "val")
    session.evaluator.rows(session.model, "final", "test")
    require_same(state(session), before, "after an evaluation: state")


def deployment_leaves_the_source_untouched_and_is_on_a_grid(case: Case) -> None:
    """At 2 to 8 bits no more values than codes; in float the weights that layers compute with."""
    session = trained(case.config())
    before = state(session)
    sources: Any = weight_layers(session.model)
    for bits in range(2, 9):
        (found,) = session.evaluator.deployments(session.model, [("rtn", BitWidths(bits))])
        for name, layer in weight_layers(found.model).items():
            own = point_of_layer(found, name).weights or 0
            most = most_values(groups(sources[name], layer.weight, own))
            require(most <= 2**own, f"layer {name} has {most} values at {own} bits")
    floating = session.evaluator.deployed(session.model, "float")
    require_same(state(session), before, "after deployments: state")
    for name, layer in weight_layers(floating).items():
        latent = sources[name].eval().weight_transform(sources[name].weight)
        require(torch.equal(layer.weight, latent), f"in float, layer {name} has other weights")


def every_group_that_shares_a_step_is_on_a_grid(case: Case, quantizer: dict[str, str]) -> None:
    """With quantizers per channel or of another range, at all bits, for all that a step may become."""
    deploy = {"bits": [2], "scale": "keep_step"}
    session = trained(case.scheduled(quantizer=quantizer, deploy=deploy, train={"epochs": 1}))
    sources: Any = weight_layers(session.model)
    for scale, bits in itertools.product(POLICIES, range(2, 9)):
        context = replace(session.evaluator.context, scale=scale)  # training knows nothing of it
        for each in session.methods:
            each.context = context
        evaluator = replace(session.evaluator, context=context)
        (found,) = evaluator.deployments(session.model, [("rtn", BitWidths(bits))])
        for name, layer in weight_layers(found.model).items():
            own, weight = point_of_layer(found, name).weights or 0, layer.weight
            own_steps = list(weight) if "granularity" in quantizer else groups(sources[name], weight, None)
            most = most_values(own_steps)
            require(most <= 2**own, f"{scale}, {own} bits: layer {name} has {most} values with one step")
            require(torch.isfinite(weight).all(), f"{scale}, {bits} bits: layer {name} must be finite; it is not")


def a_float_deployment_is_what_training_had_but_for_rounding(case: Case) -> None:
    """Outputs of the trained network: those of the float deployment or, of QAT, of that at the target."""
    session = trained(case.scheduled())
    assert isinstance(session.dataset, Dataset)
    images = session.dataset.normalized(session.dataset.val.images[:64])
    floating = session.evaluator.deployed(session.model, "float")(images)
    target = session.evaluator.deployed(session.model, 3)(images)
    own = session.model.eval()(images)
    require(not torch.equal(floating, target), "float and 3 bits give the same outputs")
    if not any(hasattr(layer.weight_quantizer, "bits") for layer in weight_layers(session.model).values()):
        require(torch.equal(floating, own), "the float deployment is another network than training had")
    else:
        require(torch.equal(target, own), "it trains through another grid than that of its target")


def a_resume_where_epochs_are_measured_after_it(case: Case) -> None:
    """Of methods with a deployment: as `monitor.deploy`. What is measured changes no weight."""
    served = {} if find(case.method).serves(BitWidths(3)) else {"target_bit": "w3a4"}
    chosen_by = {"monitor": {"deploy": tiny(case.method)}}
    lines: dict[str, list[Any]] = {}
    network = replace(case, model="resnet18")
    for name, stops, changes in (("plain", [99], {}), ("whole", [99], chosen_by), ("parts", [2, 1, 99], chosen_by)):
        lines[name] = []
        for allowed in stops:
            session = build(network.scheduled(trained_in_rounding(), **served, **changes))
            checkpoint.restore(case.folder / f"{name}.pt", session)
            left = itertools.chain([False] * allowed, itertools.repeat(True))
            with suppress(Stopped):
                train(session, lines[name].append, partial(next, left))
            checkpoint.save(case.folder / f"{name}.pt", session)
    states = {name: torch.load(case.folder / f"{name}.pt", weights_only=True) for name in lines}
    require_same(states["parts"], states["whole"], "after a resume: state")
    require(lines["parts"] == lines["whole"], "after a resume, epochs have other metrics")
    require_same(states["whole"]["model"], states["plain"]["model"], "measured after it: weights")


def _crossed(method: str, deploy: str, target: int | str) -> tuple[Session, Evaluator]:
    """A session of a method, and an evaluator with short settings of the deploy method."""
    raw = {
        "methods": [tiny(method)],
        "target_bit": target,
        "model": _CROSSED[fitting(method, _CROSSED)[0]],
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": {"batch_size": 40},
        "deploy": {"scale": "keep_range"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    session = build(complete(raw))
    settings = {**tiny(deploy), "iterations": 30, "images": 80}
    known = {name: value for name, value in settings.items() if name in find(deploy).Config.model_fields}
    return session, replace(session.evaluator, settings={deploy: known})


def every_layer_may_become_another_value_of_its_grid(method: str, deploy: str) -> None:
    """Networks of `method`, rounded by `deploy`, which acts on weights: the grid of round-to-nearest, other values."""
    session, evaluator = _crossed(method, deploy, 3)
    sources: Any = weight_layers(session.model)
    for bits in (2, 3):
        found: Any = weight_layers(evaluator.deployed(session.model, BitWidths(bits), deploy))
        rounded: Any = weight_layers(evaluator.deployed(session.model, BitWidths(bits)))
        for name, layer in found.items():
            for own, nearest in zip(groups(sources[name], layer.weight), groups(sources[name], rounded[name].weight)):
                require(len(torch.cat([own, nearest]).unique()) <= 2**bits, f"layer {name}: another grid")
        other = [name for name, layer in found.items() if not torch.equal(layer.weight, rounded[name].weight)]
        require(len(other) > len(found) / 2, f"at {bits} bits only {other} differ from round-to-nearest")


def weights_and_inputs_are_rounded_on_grids_of_the_point(method: str, deploy: str, target: int | str) -> None:
    """Networks of `method`, rounded by `deploy`, which acts on weights given rounded inputs, or has grids for both."""
    session, evaluator = _crossed(method, deploy, target)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    found, again, rounded = (evaluator.deployed(session.model, "w3a4", way) for way in (deploy, deploy, "rtn"))
    require_same(dict(session.model.state_dict()), before, "the source")
    require_same(dict(again.state_dict()), dict(found.state_dict()), "deployed twice")
    layers: Any = weight_layers(found)
    nearest: Any = weight_layers(rounded)
    sources: Any = weight_layers(session.model)
    for name, layer in layers.items():
        parts = groups(sources[name], layer.weight)
        require(most_values(parts) <= 8, f"layer {name} has more than 8 values")
    other = [name for name, layer in layers.items() if not torch.equal(layer.weight, nearest[name].weight)]
    # some layers of an untrained network get inputs that are all rounded to 0
    require(len(other) >= len(layers) / 2, f"only {other} differ from round-to-nearest")
    require(_bits_of_inputs(found) == _bits_of_inputs(rounded), "its inputs have other bits than round-to-nearest's")
    assert isinstance(session.dataset, Dataset)
    images, _ = session.dataset.batch(session.dataset.val, slice(0, 20))
    require(found(images).isfinite().all(), "its outputs must be finite; some are not")
    require(not find(deploy).serves(BitWidths(3)), "it serves points with bits for activations alone")


def _bits_of_inputs(model: nn.Module) -> dict[str, int]:
    held = {name: site.held for name, site in input_sites(model).items()}
    return {name: each.bits for name, each in held.items() if isinstance(each, ActivationQuantizer)}


def bits_of_layers_stay_within_a_budget(method: str, deploy: str, target: int | str) -> None:
    """Networks of `method`, for whose layers `deploy` chooses bits: a mean of 3 weights' bits, the same each time."""
    session, evaluator = _crossed(method, deploy, target)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    sources: Any = weight_layers(session.model)
    for point in (BitWidths(3), BitWidths(3, 4)):
        first, again = (evaluator.deployments(session.model, [(deploy, point)])[0] for _ in range(2))
        require(
            first.allocated is not None and first.allocated == again.allocated, f"{point}: bits differ, or none are"
        )
        require_same(dict(again.model.state_dict()), dict(first.model.state_dict()), f"{point}, deployed twice")
        assert first.allocated is not None
        points = first.allocated.mapping
        layers: Any = weight_layers(first.model)
        require(set(points) == {*layers, "*"}, f"{point}: bits for {sorted(points)}, not for each layer")
        bits = torch.tensor([points[name].weights or 0 for name in layers]).double()
        sizes = torch.tensor([layer.weight.numel() for layer in layers.values()])
        mean = float((bits * sizes).sum() / sizes.sum())
        require(mean <= 3 + 1e-6, f"{point}: {mean} bits per weight")
        for name, layer in layers.items():
            own = points[name].weights
            parts = groups(sources[name], layer.weight)  # with deploy.scale: keep_range channels may keep theirs
            require(own is not None and most_values(parts) <= 2**own, f"{name}: more values")
        quantized = any(isinstance(each, ActivationQuantizer) for each in first.model.modules())
        require(quantized == point.has_activations, f"{point}: activations are quantized: {quantized}")
    require_same(dict(session.model.state_dict()), before, "the source")
