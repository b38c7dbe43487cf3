"""Whether a run can be built: its network with random weights and its methods, before anything is queued.

Random inputs stand in for the data, which is not read; nothing is fetched, and no GPU is used.
"""

import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from harness.core import outside
from harness.core.errors import UserError
from harness.data import Augment
from harness.data._samples import Pairs, TaskData, TensorData
from harness.data.base import Dataset, Split
from harness.models import build_model
from harness.training.build import build
from harness.training.config import RunConfig, component
from harness.training.finite import TrainingError
from harness.training.loop import step
from harness.training.optimizer import make_optimizer
from harness.training.session import Session

#: Samples of a stand-in: batch norm needs two.
COUNT = 2


class RandomSamplesError(Exception):
    """A build that failed after its methods had read random samples: with those of the data it may not.

    cause: the error, no UserError.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Noted:
    """Data that notes whether its samples were read."""

    def __init__(self, data: TaskData) -> None:
        self._data, self.read = data, False

    def __getattr__(self, name: str) -> Any:
        self.read = self.read or name == "train_batch"
        return getattr(self._data, name)


def try_build(config: RunConfig, shape: tuple[int, ...], outputs: int) -> Session:
    """`session_without_data`, for a check alone, which takes a step where a method is the user's own.

    Raises RandomSamplesError, and any error of the network's code.
    """
    samples = _Noted(stand_in(config, shape, outputs))
    try:
        session = _session(config, samples)
        if any(outside.is_name(entry["name"]) for entry in config.methods):
            _try_step(session)
        return session
    except UserError:
        raise
    except Exception as error:
        if samples.read:
            raise RandomSamplesError(error) from error
        raise


def _try_step(session: Session) -> None:
    """One step of training and what methods then report: every hook of theirs is called before anything is queued."""
    optimizer = make_optimizer(session.config.train, session.model, session.methods)
    session = replace(session, optimizer=optimizer)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), suppress(TrainingError):  # random samples may
        warnings.simplefilter("ignore")
        step(session, torch.arange(COUNT))
    for method in session.methods:
        method.metrics()


def session_without_data(config: RunConfig, shape: tuple[int, ...], outputs: int) -> Session:
    """A run's session on stand-in inputs of a shape, with random weights and no optimizer. Raises UserError."""
    return _session(config, stand_in(config, shape, outputs))


def _session(config: RunConfig, samples: TaskData) -> Session:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # the run itself gives them
        return build(_on_cpu(config), stand_in=samples)


def try_model(config: RunConfig, shape: tuple[int, ...], outputs: int) -> None:
    """Build the network alone. Raises UserError where it does not suit such inputs."""
    build_model(component("model", _on_cpu(config).model), shape, outputs, config.seed)


def stand_in(config: RunConfig, shape: tuple[int, ...], outputs: int) -> TaskData:
    """Random inputs and targets of the run's task, the same in each split."""
    if config.task.name == "classification":
        return _images_of_classes(shape, outputs)
    inputs = config.task.example_inputs(COUNT, shape)
    split = Pairs(inputs, config.task.example_targets(inputs, outputs))
    return TensorData(split, split, split, outputs, digest="stand-in")


def _images_of_classes(shape: tuple[int, ...], classes: int) -> Dataset:
    """A data set of random images, uint8 (2, C, H, W), the same in each split."""
    images = torch.randint(0, 256, (COUNT, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(COUNT) % classes)
    names = tuple(str(number) for number in range(classes))
    mean, std = torch.zeros(shape[0]), torch.ones(shape[0])
    return Dataset(split, split, split, names, 255, mean, std, Augment(), digest="stand-in")


def _on_cpu(config: RunConfig) -> RunConfig:
    """The run on this machine's CPU, by plain operations; random weights in place of published ones."""
    plain: dict[str, Any] = {"device": "cpu", "threads": None, "compile": "off", "deterministic": False}
    return random_weights(config).model_copy(
        update={
            "runtime": config.runtime.model_copy(update=plain),
            "train": config.train.model_copy(update={"precision": "fp32"}),
        }
    )


def random_weights(config: RunConfig) -> RunConfig:
    """The run with random weights in place of published ones, which would be fetched."""
    if config.model.get("init") != "pretrained":
        return config
    return config.model_copy(update={"model": {**config.model, "init": "scratch"}})
