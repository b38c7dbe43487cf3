"""The names of everything a run reports. Tracking, dashboards and analysis take them from here."""

from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.bits import BitWidths
from harness.core.layer_points import AnyPoint, LayerPoints, Written, point_of
from harness.core.metric import Metric

#: x-axis of every curve; never W&B's own step.
EPOCH = "epoch"
TRAIN_LOSS = "train/loss"
TRAIN_PENALTY = "train/penalty"
LEARNING_RATE = "train/learning_rate"
#: The value that decides early stopping and the best epoch: the metric at the target, after `monitor.deploy`.
MONITOR = "val/monitor"

FLIPS_PER_WEIGHT = "osc/flips_per_weight"
OSCILLATIONS_PER_WEIGHT = "osc/oscillations_per_weight"
FREQUENCY = "osc/frequency"
OSCILLATING_FRACTION = "osc/oscillating_fraction"
THRESHOLD_DISTANCE = "osc/threshold_distance"
#: Counts of weights by their distance to the nearest decision threshold, one count per bin of `THRESHOLD_EDGES`.
THRESHOLD_HISTOGRAM = "osc/threshold_histogram"
#: In steps. No weight within a quantizer's range is further than half a step; the last bin holds all that are clipped.
THRESHOLD_EDGES = tuple(i / 40 for i in range(22))
LAYER_PREFIX = "osc_layers/"
#: Frequency by layer, in the order of the network, as the counts of a histogram: W&B draws it as a heat map.
LAYER_PROFILE = "osc/layer_profile"
#: In W&B's summary of a finished run: its record.json without the configuration, and its labels, as JSON text.
RECORD = "record"
#: The fields of a row of record.json, in order. bits: of the weights; the name of points by layer.
ROW = ("phase", "split", "deploy", "scale", "bits", "accuracy", "loss", "n")
#: The same of other tasks than classification: the key of their metric, and its value. Figures beside the metric
#: follow, by their keys.
SCORED_ROW = ("phase", "split", "deploy", "scale", "bits", "metric", "score", "loss", "n")
#: The key of the metric of rows that name none.
_ACCURACY = "acc"
#: Further fields, of rows in which these are quantized: their bits.
ROW_WHERE_QUANTIZED = ("activations", "kv")
#: Of rows at points by layer: layer name or glob -> point. Of rows of a deploy method that chooses points for layers:
#: those that it chose, in the same form.
LAYERS, ALLOCATED = "layers", "allocated"
#: Of rows of deployed networks whose weights have integer codes: a digest of these and of their scales.
CODES = "codes_sha256"


def point(row: Mapping[str, Any]) -> AnyPoint:
    """The deployment point of a row."""
    if LAYERS in row:
        return LayerPoints.of({"name": row["bits"], LAYERS: row[LAYERS]})
    weights = BitWidths.of(row["bits"]).weights
    return BitWidths(weights, *(row.get(name) for name in ROW_WHERE_QUANTIZED))


def fields_of(point: AnyPoint) -> dict[str, Any]:
    """What a row has beside ROW."""
    if isinstance(point, LayerPoints):
        return {LAYERS: point.plain[LAYERS]}
    found = {name: getattr(point, name) for name in ROW_WHERE_QUANTIZED}
    return {name: bits for name, bits in found.items() if bits is not None}


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from the others of its record."""
    return row["split"], row["deploy"], row["scale"], point(row)


def scored(metric: Metric, value: float) -> dict[str, Any]:
    """The fields of a row that hold its metric."""
    return {"accuracy": value} if metric.key == _ACCURACY else {"metric": metric.key, "score": value}


def score_of(row: Mapping[str, Any]) -> float:
    """The value of a row's metric."""
    return float(row["accuracy"] if "accuracy" in row else row["score"])


def score(metric: Metric, split: str, point: Written) -> str:
    """`val/acc_w3`, `val/acc_w4a8`, `test/psnr_float`: a metric on a split at a deployment point."""
    return f"{split}/{metric.key}_{point_of(point).key}"


def loss(split: str, point: Written) -> str:
    """`val/loss_w3`: the task's mean loss on a split at a deployment point."""
    return f"{split}/loss_{point_of(point).key}"


def after(metric: str, deploy: str) -> str:
    """`val/acc_w3_after_bn_reestimation`: an epoch's metric measured after a deploy method; its own name for rtn."""
    return metric if deploy == "rtn" else f"{metric}_after_{deploy}"


def worst(metric: Metric, split: str) -> str:
    """`val/acc_worst`: the worst value over the deployment points that were evaluated, float not among them."""
    return f"{split}/{metric.key}_worst"


def spread(metric: Metric, split: str) -> str:
    """`val/acc_spread`: the highest less the lowest value over the same points."""
    return f"{split}/{metric.key}_spread"


def watched_at(name: str, bits: int) -> str:
    """`osc_w3/frequency`: an oscillation metric of a float run at a further bit-width that it is watched at."""
    return name.replace("osc/", f"osc_w{bits}/", 1)


def layer_frequency(layer: str) -> str:
    """`osc_layers/net_0`: mean oscillation frequency of a layer (dots break W&B's keys)."""
    return LAYER_PREFIX + layer.replace(".", "_")


def as_metrics(rows: Iterable[Mapping[str, Any]], metric: Metric, deploy: str = "rtn") -> dict[str, float]:
    """Rows as metrics (`val/acc_w3`, `val/loss_w3`, `val/acc_worst` and so on) of one deploy method.

    metric: that of the rows' task.
    """
    metrics: dict[str, float] = {}
    quantized: dict[str, list[float]] = {}
    for row in rows:
        if row["deploy"] == deploy:
            metrics[score(metric, row["split"], point(row))] = score_of(row)
            metrics[loss(row["split"], point(row))] = row["loss"]
            for each in metric.beside:
                if each.key in row:  # of further figures, not all runs of a sweep need have them
                    metrics[score(each, row["split"], point(row))] = row[each.key]
            if not point(row).is_float:
                quantized.setdefault(row["split"], []).append(score_of(row))
    for split, values in quantized.items():
        metrics[worst(metric, split)] = metric.worst(values)
        metrics[spread(metric, split)] = max(values) - min(values)
    return metrics


#: Further keys of a run's configuration on W&B: the sweep's name, the cell's id, the trial's number, the methods as one
#: word, and the methods' settings by method, since W&B cannot search inside a list.
SWEEP, CELL, TRIAL, METHOD, KNOBS = "sweep", "cell", "trial", "method", "knobs"
LABELS = (SWEEP, CELL, TRIAL)
_SECTIONS = ("train", "model", "data", "deploy")


def config_key(parameter: str) -> str:
    """Where W&B's copy of a configuration holds a sweep's parameter.

    `train.learning_rate` and `target_bit` where they are, `oscillation.strength` under the methods' settings.
    """
    section, dot, _ = parameter.partition(".")
    return parameter if not dot or section in _SECTIONS else f"{KNOBS}.{parameter}"
