"""The network of a run's file, built from the configuration in it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from harness.training.config import complete
from harness.training.trial_build import session_without_data


def architecture(about: Mapping[str, Any]) -> nn.Module:
    """A network as that of a run's file is when deployed, with random weights. Reads no data and fetches nothing."""
    raw = dict(about["config"])
    raw["model"] = {**raw["model"], "init": "scratch"} | ({"head": "keep"} if "head" in raw["model"] else {})
    session = session_without_data(complete(raw), tuple(about["input"]["shape"]), about["input"]["outputs"])
    model = session.evaluator.deployed(session.model, about["point"])
    return model.to(memory_format=torch.channels_last)
