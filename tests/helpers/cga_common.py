"""What the tests of confidence-guided annealing share: sessions, their steps, and who is near a threshold."""

from typing import Any

import torch
from test_dampening import run_config
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.data.base import order
from harness.methods.base import Context
from harness.methods.cga import ConfidenceGuidedAnnealing
from harness.quantization import StatisticalQuantizer, WeightQuantizer
from harness.quantization.layers import QuantLayer
from harness.training import loop
from harness.training.build import build
from harness.training.session import Session

OPTIMIZERS = [
    {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05, "weight_decay": 0.1},
    {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    {"optimizer": "adam", "learning_rate": 0.01, "clip_norm": 1.0},
]


def cga(context: Context | None = None, **settings: Any) -> ConfidenceGuidedAnnealing:
    return ConfidenceGuidedAnnealing(
        ConfidenceGuidedAnnealing.Config(**{"start": 0.0, **settings}), context or Context(target_bit=3)
    )


def prepared(model: nn.Module, **settings: Any) -> ConfidenceGuidedAnnealing:
    method = cga(**settings)
    method.prepare(model, NO_DATA)
    method.prepared(model)
    return method


def session_of(
    below: list[Any], epochs: int = 2, batch_size: int = 40, optimizer: Any = None, **settings: Any
) -> Session:
    """[*below, cga] on digits."""
    training = {"epochs": epochs, "batch_size": batch_size, "precision": "fp32", **(optimizer or OPTIMIZERS[0])}
    return build(run_config([*below, {"name": "cga", **settings}], train=training))


def steps(session: Session) -> Any:
    """Take the run's steps; gives the number of each after it."""
    for epoch in range(session.config.train.epochs):
        permutation = order(len(session.dataset.train), session.config.seed, epoch, session.device)
        session.progress.epoch, session.progress.step = epoch, 0
        for indices in permutation.split(session.config.train.batch_size)[: session.steps_per_epoch]:
            loop.step(session, indices)
            yield epoch * session.steps_per_epoch + session.progress.step


def near(layer: QuantLayer, boundary: float) -> Tensor:
    """Which weights are within `boundary` of a threshold, by a walk over all thresholds."""
    weight, own = layer.weight_transform(layer.weight).detach(), layer.weight_quantizer
    assert isinstance(own, WeightQuantizer)
    n = 2 ** (own.bits - 1)
    if isinstance(own, StatisticalQuantizer):
        mean = weight.abs().mean(dim=1, keepdim=True) if own.per_channel else weight.abs().mean()
        width, thresholds = 2 * mean / n, [float(k) for k in range(-n + 1, n)]
    else:
        width = own.step(weight).detach()
        thresholds = [k - 0.5 for k in range(-n + 2, n)]
    result = torch.zeros_like(weight, dtype=torch.bool)
    for threshold in thresholds:
        result |= (weight / width - threshold).abs() <= boundary
    return result
