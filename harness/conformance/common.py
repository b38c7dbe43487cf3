"""What the checks share: small runs on digits, comparison to the last bit, and what of a layer shares a step."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core import registry
from harness.core.bits import BitWidths
from harness.methods import find
from harness.methods._requirements import lacking
from harness.models import build_model
from harness.quantization import WeightQuantizer
from harness.quantization.layers import QuantLayer
from harness.training.build import build
from harness.training.config import RunConfig, complete, component
from harness.training.evaluator import Deployment
from harness.training.loop import train
from harness.training.session import Session

DIGITS = (1, 8, 8)
MODELS: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 16},
    # Stochastic depth draws from torch's global generator, whose state a checkpoint must carry.
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2, "drop_path": 0.3},
}
#: Of checks with a schedule.
SMALLER: dict[str, dict[str, Any]] = {
    "mlp5": {"name": "mlp5", "width": 12, "depth": 3},
    "vit_tiny": {"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2, "drop_path": 0.4},
}
#: With statistics that a deploy method can change; too slow for every check.
BATCH_NORMS: dict[str, dict[str, Any]] = {"resnet18": {"name": "resnet18", "width": 2}}


class CheckFailed(AssertionError):
    """A component does not do what every one of its kind must; the message says what."""


def require(true: object, what: object) -> None:
    """Raise CheckFailed with a description of what is required, unless it is true."""
    if not true:
        raise CheckFailed(what)


@dataclass(frozen=True)
class Case:
    """What a check of a method is carried out on.

    model: a key of MODELS; None: the first that has what the method requires. folder: empty, for runs.
    """

    method: str
    model: str | None = None
    device: str = "cpu"
    folder: Path = Path()

    def config(self, method: str | None = None, **settings: Any) -> RunConfig:
        """Two epochs of three steps on digits. method: another than the case's; settings: of the method."""
        name = method or self.method
        return complete(
            {
                "methods": [{**tiny(name), **settings}],
                "target_bit": 3,
                "model": MODELS[self.model or fitting(self.method, MODELS)[0]],
                "data": {"name": "digits", "train_fraction": 0.1, "augment": {"crop_padding": 1, "flip": True}},
                "train": {"epochs": 2, "batch_size": 40, "learning_rate": 1e-2, "clip_norm": 5.0, "precision": "fp32"},
                "deploy": {"bits": [2, 3, 8], "scale": "recalibrate"},
                "runtime": self._runtime | {"threads": 1},
            }
        )

    def scheduled(self, method: str | None = None, **changes: Any) -> RunConfig:
        """The same with a schedule of the learning rate, and steps that are kept. changes: of the configuration."""
        name = method or self.method
        raw: dict[str, Any] = {
            "methods": [tiny(name)],
            "target_bit": 3,
            "model": (SMALLER | BATCH_NORMS)[self.model or fitting(self.method, SMALLER)[0]],
            "data": {"name": "digits", "train_fraction": 0.1, "augment": {"crop_padding": 1}},
            "train": {"epochs": 2, "batch_size": 40, "learning_rate": 3e-3, "schedule": "cosine", "warmup_epochs": 1},
            "deploy": {"bits": [2, 3, 8], "scale": "keep_range"},
            "runtime": self._runtime,
        }
        return complete(raw | changes)

    @property
    def _runtime(self) -> dict[str, Any]:
        return {"device": self.device, "deterministic": self.device == "cuda", "wandb": "off"}


def tiny(method: str) -> dict[str, Any]:
    """A method's entry with settings by which a few steps show its effect."""
    return {**find(method).tiny_config().model_dump(), "name": method}


def trained_in_rounding() -> str:
    """A method here that trains through the grid, weights and activations, and asks nothing of a network."""
    every = ((name, find(name)) for name in registry.names("method"))
    return next(name for name, each in every if (each.kind, each.activations) == ("QAT", "moving range"))


def fitting(method: str, models: Mapping[str, dict[str, Any]]) -> list[str]:
    """The models, by name, that have what the method requires; in their order."""
    required = find(method).requires
    return [
        name
        for name, settings in models.items()
        if not required or not lacking(_network(json.dumps(settings)), required)
    ]


@cache
def _network(settings: str) -> nn.Module:
    return build_model(component("model", json.loads(settings)), DIGITS, 10, seed=0)


def groups(source: QuantLayer, weight: Tensor, bits: int | None = None) -> list[Tensor]:
    """The parts of a deployed weight that share a step: the whole, or the channels where its quantizer has one each.

    source: the layer that was trained. bits: of the deployment; its own quantizer counts at its own bit-width.
    """
    own = source.weight_quantizer
    per_channel = isinstance(own, WeightQuantizer) and own.per_channel and bits in (None, own.bits)
    return list(weight) if per_channel else [weight]


def most_values(parts: list[Tensor]) -> int:
    """The largest number of different values in one of the parts of a weight, which are of one size."""
    ordered = torch.stack(parts).flatten(1).sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1


def point_of_layer(found: Deployment, name: str) -> BitWidths:
    """The point of a layer in a network that was deployed at one for all: that one, unless its method chose others."""
    assert isinstance(found.point, BitWidths)
    return found.allocated.mapping[name] if found.allocated else found.point


def trained(config: RunConfig) -> Session:
    """A session after all its steps."""
    session = build(config)
    train(session, lambda metrics: None)
    return session


def state(session: Session) -> dict[str, Any]:
    """Everything that a step may change, copied."""
    return deepcopy(
        {
            "model": session.model.state_dict(),
            "training": [module.training for module in session.model.modules()],
            "gradients": [p.grad for p in session.model.parameters()],
            "optimizer": session.optimizer.state_dict(),
            "tracker": session.tracker.state_dict(),
            "methods": [method.state_dict() for method in session.methods],
            "rng": torch.get_rng_state(),
        }
    )


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal; a NaN equals a NaN, whose cause another check names."""
    if left.shape != right.shape or not left.is_floating_point():
        return torch.equal(left, right)
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def require_same(left: Any, right: Any, place: str = "state") -> None:
    """Raise CheckFailed with the place of the first difference: equal to the last bit, tensors and containers alike."""
    if isinstance(left, Tensor):
        require(isinstance(right, Tensor) and left.dtype == right.dtype, f"{place}: another type")
        require(_equal(left, right), f"{place} differs")
    elif isinstance(left, dict):
        require(isinstance(right, dict) and left.keys() == right.keys(), f"{place}: other keys")
        for key in left:
            require_same(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        require(type(left) is type(right) and len(left) == len(right), f"{place}: another length or type")
        for index, pair in enumerate(zip(left, right, strict=True)):
            require_same(*pair, place=f"{place}[{index}]")
    else:
        require(type(left) is type(right) and left == right, f"{place}: {left!r} and {right!r}")


def result(folder: Path) -> dict[str, Any]:
    """What a run left behind that must not depend on interruptions."""
    record = json.loads((folder / "record.json").read_text())
    return {
        "rows": record["rows"],
        "best_epoch": record["best_epoch"],
        "metrics": (folder / "metrics.jsonl").read_text(),
        "best": (folder / "best.safetensors").read_bytes(),
    }
