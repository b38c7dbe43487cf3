"""From a configuration to a session: everything a run is made of, drawn from the configuration's seeds."""

import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from harness import compilation
from harness.calibration import Calibration
from harness.config import RunConfig, RuntimeKnobs, TrainKnobs, component
from harness.data import load_dataset
from harness.data.base import Dataset, order
from harness.errors import UserError
from harness.evaluator import Evaluator
from harness.features import check_requirements
from harness.layers import attach
from harness.methods import build_stack, find
from harness.methods.base import Context, Method
from harness.models import build_model, load_checkpoint
from harness.oscillation import OscillationTracker
from harness.seeding import sub_seed
from harness.train import Session, steps_an_epoch


def build(config: RunConfig, weights: Path | None = None) -> Session:
    """A session at step 0, with initial weights from a file where one is given.

    Raises UserError for what only building shows (sizes that do not fit, a missing GPU).
    """
    device = choose_device(config.runtime)
    dataset = load_dataset(component("data set", config.data), config.seed, device)
    knobs = component("model", config.model)
    model = build_model(knobs, dataset.input_shape, dataset.num_classes, config.seed).to(device)
    if weights is not None:
        load_checkpoint(model, weights)
    model = model.to(memory_format=torch.channels_last)  # what convolutions are fastest in, on CPUs and GPUs alike
    check_requirements(model, knobs.name, {entry["name"]: find(entry["name"]).requires for entry in config.methods})
    attach(model, config.exclude)
    steps = steps_an_epoch(config, dataset)
    twice = any(find(entry["name"]).needs_double_backward for entry in config.methods)
    how = compilation.choose(config.runtime.compile, device, model, steps * config.train.epochs, twice)
    context, calibration = _context(config, steps, how != "off" and not twice), _calibration(config, dataset)
    methods = build_stack(config.methods, context)
    for method in methods:
        method.prepare(model, calibration)
    for method in methods:
        method.prepared(model)
    assert config.watch_bit is not None, "RunConfig sets it or refuses the configuration"
    trackers = {
        bits: OscillationTracker(model, bits, config.quantizer, config.exclude, fused=context.fused)
        for bits in (config.watch_bit, *config.also_watch)
    }
    session = Session(
        config=config,
        dataset=dataset,
        model=model,
        forward=compilation.CompiledNetwork(model, device) if how == "full" else model,
        methods=methods,
        optimizer=make_optimizer(config.train, model, methods),
        trackers=trackers,
        evaluator=_evaluator(config, dataset, methods, context, calibration),
        device=device,
        precision=choose_precision(config.train.precision, device),
        planned=how,
    )
    # Last, so that nothing above takes a part of what dropout and its like draw in training.
    torch.manual_seed(sub_seed(config.seed, "forward"))
    return session


def _evaluator(
    config: RunConfig, dataset: Dataset, methods: list[Method], context: Context, calibration: Calibration
) -> Evaluator:
    return Evaluator(
        dataset=dataset,
        methods=methods,
        context=context,
        calibration=calibration,
        bits=config.evaluated_bits,
        deploys=("rtn", *(name for name in config.deploy.methods if name != "rtn")),
        batch_size=config.runtime.eval_batch_size,
        precision=config.deploy.precision,
    )


def _context(config: RunConfig, steps: int, fused: bool) -> Context:
    return Context(
        target_bit=config.target_bit,
        total_steps=steps * config.train.epochs,
        steps_per_epoch=steps,
        seed=sub_seed(config.seed, "method"),
        quantizer=config.quantizer,
        scale=config.deploy.scale,
        exclude=config.exclude,
        fused=fused,
    )


def _calibration(config: RunConfig, dataset: Dataset) -> Calibration:
    shuffled = order(len(dataset.train), sub_seed(config.seed, "calibration"), 0, dataset.train.labels.device)
    batches = shuffled.split(config.train.batch_size)
    return Calibration(lambda index: dataset.train_batch(batches[index % len(batches)], None))


def choose_device(runtime: RuntimeKnobs) -> torch.device:
    """The device of a run; also sets threads and determinism. Raises UserError for a device that is not there."""
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime.device: {wanted!r}: torch sees no CUDA device here (legal: auto, cpu)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"runtime.device: {wanted!r}: there are {torch.cuda.device_count()} CUDA devices")
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.deterministic:  # cuBLAS reads this when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if runtime.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone imports for a second
        torch.use_deterministic_algorithms(runtime.deterministic)
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device has matrix units for it (capability, never timing)."""
    if wanted != "auto":
        if wanted == "bf16" and device.type == "cpu" and not _multiplies_bf16():
            warnings.warn(
                "train.precision: bf16 on a CPU without units for it takes tens of times as long as fp32; "
                "auto chooses by what the CPU has",
                stacklevel=2,
            )
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def _multiplies_bf16() -> bool:
    """Whether the CPU has any instruction for products in bf16, as far as torch tells: of x86 alone."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def make_optimizer(knobs: TrainKnobs, model: nn.Module, methods: Sequence[Method]) -> torch.optim.Optimizer:
    """The optimizer, with a parameter group for each set of options that methods ask for.

    A method's `lr` is a factor of the run's learning rate; other options replace the run's. What a method asks
    anything for is never in the group of the rest: it may have no gradient for a while, and torch's fused SGD cannot
    bear momentum that begins later within a group (seen with torch 2.15).
    """
    groups: dict[tuple[bool, tuple[tuple[str, float], ...]], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        asked = [options for method in methods if (options := method.param_options(name, parameter))]
        options = {"lr": 1.0, "weight_decay": knobs.weight_decay}
        for one in asked:
            options |= one
        groups.setdefault((bool(asked), tuple(sorted(options.items()))), []).append(parameter)
    parameters = [
        {**dict(options), "lr": knobs.learning_rate * dict(options)["lr"], "params": members}
        for (_, options), members in groups.items()
    ]
    if knobs.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=knobs.learning_rate, momentum=knobs.momentum, fused=True)
    optimizer = torch.optim.AdamW if knobs.optimizer == "adamw" else torch.optim.Adam
    return optimizer(parameters, lr=knobs.learning_rate, fused=True)
