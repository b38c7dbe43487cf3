"""What the tests in test_aoq*.py share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from toy_model import NO_DATA

from harness.methods.aoq import AllowingOscillation
from harness.methods.base import Context
from harness.quantization.layers import attach
from harness.training.build import build
from harness.training.config import complete
from harness.training.session import Session


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def prepared(model: nn.Module, bits: int = 2, context: dict[str, Any] | None = None, **settings: Any) -> Any:
    method = AllowingOscillation(AllowingOscillation.Config(**settings), Context(target_bit=bits, **(context or {})))
    method.prepare(model, NO_DATA)
    return method


def quantizers(model: nn.Module) -> list[Any]:
    return [layer.weight_quantizer for layer in attach(model).values()]


def session_of(methods: Sequence[Any], epochs: int = 5, bits: int = 3, **more: Any) -> Session:
    """Steps on digits with 3 an epoch, unless told otherwise."""
    settings = {"epochs": epochs, "batch_size": 40, "learning_rate": 3e-3, "precision": "fp32", **more.pop("train", {})}
    raw: dict[str, Any] = {
        "methods": list(methods),
        "target_bit": bits,
        "model": {"name": "mlp5", "width": 16, "depth": 3},
        "data": {"name": "digits", "train_fraction": 0.1},
        "train": settings,
        "deploy": {"bits": [2, 3, 4], "scale": "keep_range"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    return build(complete(raw | more))


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
