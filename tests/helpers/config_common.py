"""What the tests in test_config_*.py share."""

import json
from typing import Any

from harness.core.config_base import ActivationsConfig, QuantizerConfig, StrictConfig
from harness.training.config import RunConfig, complete
from harness.training.sections import DeployConfig, MonitorConfig, RuntimeConfig, TrainConfig

RAW: dict[str, Any] = {
    "seed": 3,
    "target_bit": 3,
    "methods": ["ste"],
    "model": {"name": "mlp5"},
    "data": {"name": "digits"},
    "deploy": {"scale": "recalibrate"},
}


#: The name of that run. It may change only together with what the run computes (and then say so in the commit):
#: every finished run on every disk is found by it.
GOLDEN = "f879773f310d"


def run_id(**changes: Any) -> str:
    """The run_id of RAW with dotted keys set (`train__epochs`, `ste__scale_gradient`: two underscores for the dot)."""
    raw = json.loads(json.dumps(RAW))
    raw["methods"] = [{"name": name} for name in raw["methods"]]
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = raw
        for section in sections:
            methods = {entry["name"]: entry for entry in raw["methods"]}
            place = methods[section] if section in methods else place.setdefault(section, {})
        place[last] = value
    return complete(raw).run_id()


#: Of every field of these sections, a value other than its default.
OTHER: dict[type[StrictConfig], dict[str, Any]] = {
    TrainConfig: {
        "epochs": 41,
        "batch_size": 129,
        "optimizer": "sgd",
        "learning_rate": 2e-3,
        "weight_decay": 0.1,
        "momentum": 0.8,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "patience": 9,
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "precision": "bf16",
    },
    QuantizerConfig: {"granularity": "channel", "range": "mse", "norms": "quantized"},
    ActivationsConfig: {
        "granularity": "token",
        "range": "max",
        "percentile": 99.0,
        "calibration_batches": 2,
        "first_last": "same",
        "attention": False,
    },
    DeployConfig: {"bits": (2,), "scale": "keep_step", "methods": ("lsq",), "precision": "bf16", "figures": ("f1",)},
    RuntimeConfig: {
        "device": "cpu",
        "threads": 3,
        "compile": "off",
        "deterministic": True,
        "eval_batch_size": 3,
        "checkpoint_every_s": 1.0,
        "wandb": "off",
        "wandb_project": "x",
        "wandb_artifact": True,
    },
    MonitorConfig: {"deploy": "bn_reestimation"},
    RunConfig: {
        "phase": "tune",
        "seed": 4,
        "target_bit": 4,
        "watch_bit": 4,
        "also_watch": (2,),
        "pretrain": {"epochs": 3},
        "methods": [{"name": "lsq"}],
        "model": {"name": "mlp5", "width": 9},
        "data": {"name": "digits", "normalize": "standardize"},
        "train": {"epochs": 1},
        "quantizer": {"range": "mse", "granularity": "channel"},
        "activations": {"range": "max", "first_last": "float"},
        "kv": {"group": 16},
        "tasks": ("super_resolution",),
        "exclude": ["layer1"],
        "deploy": {"scale": "keep_range"},
        "monitor": {"deploy": "any_precision"},
        "runtime": {"threads": 2},
    },
}


SECTIONS = {
    TrainConfig: "train",
    QuantizerConfig: "quantizer",
    ActivationsConfig: "activations",
    DeployConfig: "deploy",
    MonitorConfig: "monitor",
    RuntimeConfig: "runtime",
}


FREE = {
    "deploy__bits",
    "deploy__methods",
    "deploy__figures",
    "runtime",
    *(f"runtime__{name}" for name in OTHER[RuntimeConfig]),
}


FIELDS = [
    (f"{SECTIONS[section]}__{name}" if section in SECTIONS else name, value)
    for section, values in OTHER.items()
    for name, value in values.items()
    # Legal without a target alone, and with another range alone: they have tests of their own.
    if (section, name) not in ((RunConfig, "also_watch"), (ActivationsConfig, "granularity"))
]
