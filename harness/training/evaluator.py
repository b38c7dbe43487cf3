"""Metric and loss of a network at each deployment point. Works on copies of the model."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.bits import BitWidths
from harness.core.layer_points import AnyPoint, LayerPoints
from harness.data._samples import TaskData
from harness.quantization.deploy import weight_bits
from harness.quantization.integer_codes import codes_digest, codes_of
from harness.records import outcomes, schema
from harness.tasks.base import Task
from harness.training.deployer import Deployer
from harness.training.effort import Effort, effort

#: What one row is of: a deploy method and a point.
Case = tuple[str, AnyPoint]


@dataclass(frozen=True)
class Deployment:
    """A network as a method deployed it at a point. allocated: points that the method chose for its layers.

    codes: the digest of its integer codes (`codes_digest`), where that was asked for and its weights have some.
    notes: see `Method.notes`.
    """

    deploy: str
    point: AnyPoint
    model: nn.Module
    allocated: LayerPoints | None
    effort: Effort
    notes: Mapping[str, Any] = field(default_factory=dict)
    codes: str | None = None

    @property
    def cost(self) -> dict[str, Any]:
        """What it took, as in the record: an entry for each deploy method and point."""
        place = {"deploy": self.deploy, "bits": self.point.in_row, **schema.fields_of(self.point)}
        return {
            **place,
            "deploy_s": round(self.effort.seconds, 4),
            "deploy_peak_bytes": self.effort.peak_bytes,
            **self.notes,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluator(Deployer):
    """Evaluates a model at deployment points. deploys: "rtn" (round-to-nearest) or names of methods with a deploy."""

    dataset: TaskData
    points: tuple[AnyPoint, ...]
    deploys: tuple[str, ...]
    batch_size: int
    precision: Literal["fp32", "bf16"] = "fp32"

    def rows(
        self, model: nn.Module, phase: str, split: Literal["val", "test"], cases: Iterable[Case] | None = None
    ) -> list[dict[str, Any]]:
        """`rows_of` the model, deployed for each case."""
        return self.rows_of(self.deployments(model, cases), phase, split)

    def rows_of(
        self, deployments: Sequence[Deployment], phase: str, split: Literal["val", "test"]
    ) -> list[dict[str, Any]]:
        """One row per deployed network: see schema.ROW and schema.SCORED_ROW."""
        return self.measured(deployments, phase, split, outcomes_too=False)[0]

    def measured(
        self, deployments: Sequence[Deployment], phase: str, split: Literal["val", "test"], outcomes_too: bool = True
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """`rows_of`, and what outcomes.json holds of them; see records/outcomes.py."""
        models, task = [each.model for each in deployments], self.context.task
        samples = getattr(self.dataset, split)
        how = (self.batch_size, self.precision, outcomes_too)
        found = evaluate_all(models, task, self.dataset, samples, *how)
        rows = [self._row(one, phase, split, each) for one, each in zip(deployments, found, strict=True)]
        pairs = zip(rows, found, strict=True)
        return rows, [outcomes.entry(row, each.right) for row, each in pairs if each.right is not None]

    def _row(self, one: Deployment, phase: str, split: str, found: "Measured") -> dict[str, Any]:
        metric, (score, loss, *beside) = self.context.task.metric, found.figures
        scale, bits = self.context.scale, one.point.in_row
        row: dict[str, Any] = {"phase": phase, "split": split, "deploy": one.deploy, "scale": scale, "bits": bits}
        row |= {**schema.scored(metric, score), "loss": loss, "n": found.n}
        row |= {each.key: value for each, value in zip(metric.beside, beside, strict=True)}
        further = {schema.ALLOCATED: one.allocated.plain["layers"]} if one.allocated else {}
        further |= {schema.CODES: one.codes} if one.codes else {}
        return row | schema.fields_of(one.point) | further

    def deployments(
        self, model: nn.Module, cases: Iterable[Case] | None = None, measure: bool = False
    ) -> list[Deployment]:
        """The model as deployed for each case whose method serves the point; by default all methods at all points.

        measure: fill in the digest of its codes, and what each would take alone; observing inputs, done once, counts
        for all that make use of it.
        """
        every = [(deploy, point) for deploy in self.deploys for point in self.points] if cases is None else cases
        chosen = [(deploy, point) for deploy, point in every if deploy == "rtn" or self.method(deploy).serves(point)]
        observed, shared, device = cache(partial(self.observed, model)), Effort(), self.dataset.device
        if measure and any(self.observes(*case) for case in chosen):
            with effort(device) as shared:
                observed()
        found = []
        for deploy, point in chosen:
            with effort(device) if measure else nullcontext(Effort()) as own:
                copy, allocated, notes = self.deployment(model, point, deploy, observed)
            took = own.with_part(shared) if self.observes(deploy, point) else own
            codes = self._codes(model, copy, allocated or point) if measure else None
            found.append(Deployment(deploy, point, copy, allocated, took, notes, codes))
        return found

    def _codes(self, model: nn.Module, deployed: nn.Module, point: AnyPoint) -> str | None:
        """The digest of the codes of a deployed copy of the model; None where a weight, or all of them, have none."""
        context = self.context
        found = codes_of(deployed, weight_bits(model, point, context.exclude, context.quantizer.quantizes_norms))
        codes = {name: each for name, each in found.items() if each is not None}
        return codes_digest(codes) if codes and len(codes) == len(found) else None

    def baseline(self) -> list[Deployment]:
        """What does the task without training, where the task has that, as if it were deployed in float."""
        task = self.context.task
        network = task.baseline_for(self.dataset) if task.baseline else None
        return [Deployment(task.baseline, BitWidths(), network, None, Effort())] if network else []


class Measured(NamedTuple):
    """Of a model on a split. figures: the task's metric, its loss, those beside the metric. right: of each sample."""

    figures: tuple[float, ...]
    n: int
    right: list[bool] | None


@torch.inference_mode()
def evaluate_all(
    models: Sequence[nn.Module],
    task: Task,
    dataset: TaskData,
    split: Any,
    batch_size: int,
    precision: str = "fp32",
    outcomes_too: bool = False,
) -> list[Measured]:
    """What the task measures of each model in evaluation mode. outcomes_too: also which samples are right.

    One pass over the data for all models; the device is waited for at its end alone.
    """
    sums: list[Tensor | float] = [0.0] * len(models)
    right: list[list[Tensor]] = [[] for _ in models]
    n = 0
    for inputs, targets in dataset.batches(split, batch_size):
        n += task.counted(targets)
        for place, model in enumerate(models):
            with torch.autocast(dataset.device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs = model(inputs).float()
            sums[place] = sums[place] + task.summed(outputs, targets, inputs)
            if outcomes_too and (batch := task.right(outputs, targets)) is not None:
                right[place].append(batch)
    found = torch.stack([torch.as_tensor(each) for each in sums]).tolist() if models else []
    each_right = [torch.cat(batches).tolist() if batches else None for batches in right]
    return [Measured(task.results(each, n), n, one) for each, one in zip(found, each_right, strict=True)]
