"""Builds a session from a configuration; every random draw comes from the configuration's seeds."""

import warnings
from pathlib import Path

import torch
from torch import nn

from harness.core.errors import UserError
from harness.core.layer_points import LayerPoints
from harness.core.outside import shown
from harness.core.seeding import sub_seed
from harness.data import load_dataset
from harness.data._samples import TaskData
from harness.data.base import order
from harness.methods import build_stack, find
from harness.methods._requirements import check_requirements
from harness.methods.base import Calibration, Context, Method
from harness.models import build_model, load_checkpoint
from harness.oscillation.tracker import OscillationTracker
from harness.quantization.audit import UNUSED, Audit, audit, listed
from harness.quantization.by_layer import check_layer_points
from harness.quantization.deploy import round_to_nearest
from harness.quantization.inputs import quantize_inputs
from harness.quantization.key_value_points import check_keys_and_values
from harness.quantization.layers import attach
from harness.quantization.norms import QuantNorm
from harness.quantization.observing import observe
from harness.quantization.slots import copy_of
from harness.training import compilation
from harness.training.config import RunConfig, component
from harness.training.device import choose_device
from harness.training.evaluator import Evaluator
from harness.training.optimizer import NoOptimizer, make_optimizer
from harness.training.precision import choose_precision
from harness.training.session import Session, steps_an_epoch


def build(config: RunConfig, weights: Path | None = None, stand_in: TaskData | None = None) -> Session:
    """A session at step 0, with initial weights from a file where one is given.

    stand_in: in place of the configuration's data, to see whether the run can be built; it has no optimizer then.
    Raises UserError for what only building can find (sizes that do not fit, a missing GPU).
    """
    device = choose_device(config.runtime)
    dataset = stand_in or load_dataset(component("data set", config.data), config.seed, device)
    model = _network(config, dataset, weights, device)
    audited = _audit(config, model, dataset.input_shape, device)
    sample = config.task.example_inputs(1, dataset.input_shape).to(device)
    precision = choose_precision(config.train.precision, device, model, sample, config.train.batch_size)
    steps = steps_an_epoch(config, dataset)
    twice = any(find(entry["name"]).needs_double_backward for entry in config.methods)
    how = compilation.choose(config.runtime.compile, device, model, steps * config.train.epochs, twice)
    context, calibration = _context(config, steps, how != "off" and not twice), _calibration(config, dataset)
    methods = _prepared(config, context, model, calibration)
    _check_deployable(config, context, model)
    check_layer_points(model, config.deploy.points, config.exclude, config.quantizer.quantizes_norms)
    check_keys_and_values(model, config.evaluated_points, config.exclude)
    _check_activations(config, model, dataset.input_shape, device)
    session = Session(
        config=config,
        dataset=dataset,
        model=model,
        forward=compilation.CompiledNetwork(model, device) if how == "full" else model,
        methods=methods,
        optimizer=NoOptimizer() if stand_in else make_optimizer(config.train, model, methods),
        trackers=_trackers(config, model, context.fused),
        evaluator=_evaluator(config, dataset, methods, context, calibration),
        device=device,
        precision=precision,
        planned=how,
        audit=audited.summary(),
    )
    # Last, so that nothing above uses up random numbers of the training (dropout and the like).
    torch.manual_seed(sub_seed(config.seed, "forward"))
    return session


def _network(config: RunConfig, dataset: TaskData, weights: Path | None, device: torch.device) -> nn.Module:
    """The configuration's network with empty slots in its layers."""
    settings = component("model", config.model)
    model = build_model(settings, dataset.input_shape, dataset.outputs, config.seed).to(device)
    if weights is not None:
        load_checkpoint(model, weights)
    model = model.to(memory_format=torch.channels_last)  # what convolutions are fastest in, on CPUs and GPUs alike
    used = dict.fromkeys([*(entry["name"] for entry in config.methods), config.monitor.name])
    required = {shown(name): find(name).requires for name in used if name != "rtn"}
    check_requirements(model, shown(settings.name), required)
    layers = attach(model, config.exclude, config.quantizer.quantizes_norms)
    if config.quantizer.quantizes_norms and not any(isinstance(layer, QuantNorm) for layer in layers.values()):
        raise UserError(
            f"quantizer.norms: 'quantized' has no effect: model {shown(settings.name)!r} has no norm layer with a "
            "weight that exclude leaves in (legal here: float)"
        )
    return model


def _prepared(config: RunConfig, context: Context, model: nn.Module, calibration: Calibration) -> list[Method]:
    """The methods of the stack, which have filled the slots of the model."""
    methods = build_stack(config.methods, context)
    for method in methods:
        method.prepare(model, calibration)
    for method in methods:
        method.prepared(model)
    return methods


def _check_deployable(config: RunConfig, context: Context, model: nn.Module) -> None:
    """Raise UserError for a network that a deploy method of the record does not serve."""
    for method in build_stack([entry for entry in config.deploys.values() if entry["name"] != "rtn"], context):
        method.check(model)


def _trackers(config: RunConfig, model: nn.Module, fused: bool) -> dict[int, OscillationTracker]:
    """By bit-width, the run's own first."""
    assert config.watch_bit is not None, "RunConfig sets it or refuses the configuration"
    return {
        bits: OscillationTracker(model, bits, config.quantizer, config.exclude, fused=fused)
        for bits in (config.watch_bit, *config.also_watch)
    }


def _audit(config: RunConfig, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> Audit:
    """Two inputs through a copy of the network. Raises UserError for weights that no quantizer would reach."""
    audited = audit(model, config.task.example_inputs(2, shape).to(device), config.exclude)
    audited.check()
    if unused := audited.named(UNUSED):
        warnings.warn(
            f"the network never uses these parameters, and they stay as they are: {listed(unused)}", stacklevel=2
        )
    return audited


def _check_activations(config: RunConfig, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise UserError, before training, for a network whose activations cannot be quantized as a point says."""
    points = [point for point in config.evaluated_points if point.has_activations]
    if points:
        copy, inputs = copy_of(model), [config.task.example_inputs(2, shape).to(device)]
        observed = observe(copy, inputs, config.exclude, config.activations.attention)
        for point in points:
            if isinstance(point, LayerPoints):
                how = (config.quantizer, config.exclude, config.activations, observed)
                round_to_nearest(copy_of(model), point, "keep_range", *how)
            else:
                quantize_inputs(copy, point.activations, config.activations, observed, "keep_range", config.exclude)


def _evaluator(
    config: RunConfig, dataset: TaskData, methods: list[Method], context: Context, calibration: Calibration
) -> Evaluator:
    return Evaluator(
        dataset=dataset,
        methods=methods,
        context=context,
        calibration=calibration,
        points=config.evaluated_points,
        deploys=tuple(config.deploys),
        batch_size=config.runtime.eval_batch_size,
        precision=config.deploy.precision,
        settings=config.deploys,
    )


def _context(config: RunConfig, steps: int, fused: bool) -> Context:
    return Context(
        target_bit=config.target_bit,
        activations=config.activations,
        kv=config.kv,
        total_steps=steps * config.train.epochs,
        steps_per_epoch=steps,
        seed=sub_seed(config.seed, "method"),
        quantizer=config.quantizer,
        scale=config.deploy.scale,
        exclude=config.exclude,
        fused=fused,
        task=config.task,
    )


def _calibration(config: RunConfig, dataset: TaskData) -> Calibration:
    shuffled = order(len(dataset.train), sub_seed(config.seed, "calibration"), 0, dataset.device)
    batches = shuffled.split(config.train.batch_size)
    return Calibration(lambda index: dataset.train_batch(batches[index % len(batches)], None), len(batches))
