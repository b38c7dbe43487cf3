"""A small network that has been trained, and what methods that allocate bits get of its run."""

from functools import cache
from typing import Any

import pytest

from harness.data.base import Dataset, Split
from harness.training.build import build
from harness.training.config import complete
from harness.training.loop import train
from harness.training.session import Session

MLP = {"name": "mlp5", "width": 24, "depth": 6}
VIT = {"name": "vit_tiny", "width": 16, "depth": 1, "heads": 2, "patch": 4}


@cache
def trained(network: str = "mlp", epochs: int = 5, **activations: Any) -> Session:
    """A session after a few epochs of digits in float. Its evaluator deploys copies: the session stays as it is."""
    raw: dict[str, Any] = {
        "methods": "none",
        "watch_bit": 3,
        "model": MLP if network == "mlp" else VIT,
        "data": {"name": "digits", "train_fraction": 0.5},
        "train": {"epochs": epochs, "batch_size": 32, "learning_rate": 3e-3, "precision": "fp32"},
        "activations": {"calibration_batches": 2, **activations},
        "deploy": {"bits": [3], "scale": "recalibrate"},
        "runtime": {"device": "cpu", "wandb": "off", "threads": 1},
    }
    session = build(complete(raw))
    train(session, lambda metrics: None)
    session.model.eval()
    return session


def refuse_evaluation_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on only training images may be read. Returns a list that gets the size of each batch."""
    batch, seen = Dataset.batch, []

    def noted(self: Dataset, split: Split, indices: Any) -> Any:
        assert split is self.train, "evaluation images were read"
        found = batch(self, split, indices)
        seen.append(len(found[0]))
        return found

    monkeypatch.setattr(Dataset, "batch", noted)
    return seen
