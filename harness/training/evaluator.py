"""Accuracy and loss of a network at each deployment point. Works on copies of the model."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from harness.core.bits import FLOAT, BitWidths, PlainPoint
from harness.data.base import Dataset, Split
from harness.methods import build_stack
from harness.methods.base import Calibration, Context, Method
from harness.quantization.deploy import round_to_nearest
from harness.records import schema

#: What one row is of: a deploy method and a point.
Case = tuple[str, BitWidths]


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model at deployment points. deploys: "rtn" (round-to-nearest) or names of methods with a deploy.

    settings: of such methods, by name, where they are not the method's defaults.
    """

    dataset: Dataset
    methods: Sequence[Method]
    context: Context
    calibration: Calibration
    points: tuple[BitWidths, ...]
    deploys: tuple[str, ...]
    batch_size: int
    precision: Literal["fp32", "bf16"] = "fp32"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def rows(
        self, model: nn.Module, phase: str, split: Literal["val", "test"], cases: Iterable[Case] | None = None
    ) -> list[dict[str, Any]]:
        """One row per case, a deploy method and a point: see schema.ROW. Accuracy in [0, 1], loss in nats.

        cases: all deploy methods at all points by default.
        """
        cases = [(each, point) for each in self.deploys for point in self.points] if cases is None else list(cases)
        models = [self.deployed(model, point, deploy) for deploy, point in cases]
        found = evaluate_all(models, self.dataset, getattr(self.dataset, split), self.batch_size, self.precision)
        rows = []
        for (deploy, point), (accuracy, loss, n) in zip(cases, found, strict=True):
            weights = point.weights or FLOAT
            values = (phase, split, deploy, self.context.scale, weights, accuracy, loss, n)
            rows.append(dict(zip(schema.ROW, values, strict=True)) | schema.fields_of(point))
        return rows

    def deployed(self, model: nn.Module, at: BitWidths | PlainPoint, deploy: str = "rtn") -> nn.Module:
        """A copy of the model as deployed at a point: in evaluation mode, weights on the grid."""
        point = BitWidths.of(at)
        copy = deepcopy(model).eval()
        entry = self.settings.get(deploy, {"name": deploy})
        extra = [] if deploy == "rtn" else build_stack([dict(entry)], self.context)
        for method in (*self.methods, *extra):
            method.deploy(copy, point, self.calibration)
        return round_to_nearest(copy, point, self.context.scale, self.context.quantizer, self.context.exclude)


@torch.inference_mode()
def evaluate_all(
    models: Sequence[nn.Module], dataset: Dataset, split: Split, batch_size: int, precision: str = "fp32"
) -> list[tuple[float, float, int]]:
    """Accuracy in [0, 1], mean cross-entropy in nats and the number of images, of each model in evaluation mode.

    One pass over the data for all models; one device synchronisation.
    """
    sums = torch.zeros(len(models), 2, dtype=torch.float64, device=dataset.device)
    for start in range(0, len(split), batch_size):
        inputs, labels = dataset.batch(split, slice(start, start + batch_size))
        for model, (correct, loss) in zip(models, sums, strict=True):
            with torch.autocast(dataset.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(inputs).float()
            correct += (logits.argmax(dim=1) == labels).sum()
            loss += functional.cross_entropy(logits, labels, reduction="sum").double()
    return [(correct / len(split), loss / len(split), len(split)) for correct, loss in sums.tolist()]
