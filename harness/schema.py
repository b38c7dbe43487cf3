"""The names of everything a run reports. Tracking, dashboards and analysis take them from here."""

from collections.abc import Iterable, Mapping
from typing import Any

#: x-axis of every curve; never W&B's own step.
EPOCH = "epoch"
TRAIN_LOSS = "train/loss"
TRAIN_PENALTY = "train/penalty"
LEARNING_RATE = "train/learning_rate"
#: The value that early stopping and the best checkpoint go by.
MONITOR = "val/monitor"

FLIPS_PER_WEIGHT = "osc/flips_per_weight"
OSCILLATIONS_PER_WEIGHT = "osc/oscillations_per_weight"
FREQUENCY = "osc/frequency"
OSCILLATING_FRACTION = "osc/oscillating_fraction"
THRESHOLD_DISTANCE = "osc/threshold_distance"
LAYER_PREFIX = "osc_layers/"

FLOAT = "float"
#: The fields of a row of record.json, in order.
ROW = ("phase", "split", "deploy", "scale", "bits", "accuracy", "loss", "n")

MIN_BITS, MAX_BITS = 2, 8


def accuracy(split: str, bits: int | str) -> str:
    """`val/acc_w3`, `test/acc_float`: accuracy in [0, 1] on a split at a deployment bit-width."""
    return f"{split}/acc_{FLOAT}" if bits == FLOAT else f"{split}/acc_w{bits}"


def loss(split: str, bits: int | str) -> str:
    """`val/loss_w3`: mean cross-entropy in nats on a split at a deployment bit-width."""
    return f"{split}/loss_{FLOAT}" if bits == FLOAT else f"{split}/loss_w{bits}"


def layer_frequency(layer: str) -> str:
    """`osc_layers/net_0`: mean oscillation frequency of a layer (dots break W&B's keys)."""
    return LAYER_PREFIX + layer.replace(".", "_")


def as_metrics(rows: Iterable[Mapping[str, Any]], deploy: str = "rtn") -> dict[str, float]:
    """Rows as metrics (`val/acc_w3`, `val/loss_w3` and so on) of one deploy method."""
    metrics: dict[str, float] = {}
    for row in rows:
        if row["deploy"] == deploy:
            metrics[accuracy(row["split"], row["bits"])] = row["accuracy"]
            metrics[loss(row["split"], row["bits"])] = row["loss"]
    return metrics
