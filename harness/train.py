"""THE LOOP. It names no method: what a method does stands in its hooks (harness/methods/base.py)."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness import schema
from harness.config import RunConfig, TrainKnobs
from harness.data.base import Dataset, order
from harness.errors import Stopped
from harness.evaluate import Evaluator
from harness.methods.base import Method, Step
from harness.oscillation import OscillationTracker
from harness.seeding import sub_seed


class TrainingError(RuntimeError):
    """Training went where no result can come from, such as a loss that is not a number."""


@dataclass
class Progress:
    """Where training stands; the whole of what a checkpoint adds to model, optimizer and method states."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    best_epoch: int = 0
    best_value: float = -math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    sums: Tensor | None = None  # (2,) on the device: loss and penalty of the current epoch

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Session:
    """A run in memory. Built by harness/run.py."""

    config: RunConfig
    dataset: Dataset
    model: nn.Module
    methods: list[Method]
    optimizer: torch.optim.Optimizer
    tracker: OscillationTracker
    evaluator: Evaluator
    device: torch.device
    precision: str
    progress: Progress = field(default_factory=Progress)


def train(
    session: Session,
    epoch_done: Callable[[dict[str, Any]], None],
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train until the last epoch or until patience runs out; the best epoch's weights are in `progress`.

    epoch_done gets the metrics of each epoch. Raises Stopped between two steps once asked to stop, and
    TrainingError when the loss is not finite.
    """
    knobs, progress, model, methods = session.config.train, session.progress, session.model, session.methods
    steps_per_epoch, seed = steps_an_epoch(session.config, session.dataset), session.config.seed
    base_rates = [group["lr"] for group in _initial(session.optimizer)]
    generator = torch.Generator(session.device)
    while progress.epoch < knobs.epochs and not out_of_patience(progress, knobs, methods):
        permutation = order(len(session.dataset.train), seed, progress.epoch, session.device)
        model.train()
        for indices in permutation.split(knobs.batch_size)[progress.step : steps_per_epoch]:
            if asked_to_stop():
                raise Stopped
            step = Step(progress.epoch * steps_per_epoch + progress.step, knobs.epochs * steps_per_epoch, model)
            for group, rate in zip(session.optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * learning_rate_factor(step.index, step.total, steps_per_epoch, knobs)
            for method in methods:
                method.on_step_start(step)
            inputs, labels = session.dataset.train_batch(
                indices, generator.manual_seed(sub_seed(seed, "augment", step.index))
            )
            with _forward_context(session):
                logits = model(inputs)
            step.task_loss = functional.cross_entropy(logits.float(), labels, label_smoothing=knobs.label_smoothing)
            penalty = sum((method.penalty(step) for method in methods), start=0.0)
            session.optimizer.zero_grad()
            (step.task_loss + penalty).backward()
            penalty = penalty + sum((method.after_backward(step) for method in methods), start=0.0)
            if knobs.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), knobs.clip_norm)
            session.optimizer.step()
            for method in methods:
                method.after_step(step)
            session.tracker.update()
            _count(progress, step.task_loss.detach(), penalty)
        epoch_done(_finish_epoch(session, steps_per_epoch))


def _finish_epoch(session: Session, steps: int) -> dict[str, Any]:
    """Close an epoch: its metrics, and its weights if they are the best so far."""
    progress = session.progress
    loss, penalty = (value / steps for value in progress.sums.tolist()) if progress.sums is not None else (0.0, 0.0)
    if not math.isfinite(loss):
        raise TrainingError(f"the training loss became {loss} in epoch {progress.epoch + 1}")
    progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, None
    metrics = {
        schema.EPOCH: progress.epoch,
        schema.TRAIN_LOSS: loss,
        schema.TRAIN_PENALTY: penalty,
        schema.LEARNING_RATE: session.optimizer.param_groups[0]["lr"],
        **session.tracker.metrics(),
        **validate(session),
    }
    for method in session.methods:
        metrics |= method.metrics()
    return metrics


def validate(session: Session) -> dict[str, float]:
    """Validation metrics of the weights as they are; keeps them when they are the best so far."""
    progress = session.progress
    rows = session.evaluator.rows(session.model, session.config.phase, "val")
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"the validation loss (bits: {row['bits']}) became {row['loss']} in epoch {progress.epoch}"
            )
    metrics = schema.as_metrics(rows)
    metrics[schema.MONITOR] = monitored = metrics[schema.accuracy("val", session.config.monitored_bits)]
    eligible = progress.epoch >= first_eligible_epoch(session.config.train, session.methods)
    if eligible and monitored > progress.best_value:
        progress.best_value, progress.best_epoch = monitored, progress.epoch
        progress.best_state = {name: tensor.detach().clone() for name, tensor in session.model.state_dict().items()}
    return metrics


def steps_an_epoch(config: RunConfig, dataset: Dataset) -> int:
    """Steps an epoch. A last batch of one image is left out: batch norm cannot learn from it."""
    full, rest = divmod(len(dataset.train), config.train.batch_size)
    return full + (1 if rest > 1 or not full else 0)


def first_eligible_epoch(knobs: TrainKnobs, methods: list[Method]) -> int:
    """The first epoch (from 1) that can be best: later than 1 for methods that train in stages."""
    start = max((method.selection_start for method in methods), default=0.0)
    return min(knobs.epochs, math.floor(start * knobs.epochs) + 1)


def out_of_patience(progress: Progress, knobs: TrainKnobs, methods: list[Method]) -> bool:
    """Whether `patience` epochs have passed without improvement."""
    if knobs.patience is None:
        return False
    since = max(progress.best_epoch, first_eligible_epoch(knobs, methods) - 1)
    return progress.epoch - since >= knobs.patience


def learning_rate_factor(step: int, total: int, steps_per_epoch: int, knobs: TrainKnobs) -> float:
    """The factor of the base learning rate at a step: linear warm-up from 1/warm-up, then the schedule to 0."""
    warmup = min(round(knobs.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return (step + 1) / warmup
    if knobs.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _initial(optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    """Parameter groups with the learning rate they were built with, also after a checkpoint was loaded."""
    return ({"lr": group.setdefault("initial_lr", group["lr"])} for group in optimizer.param_groups)


def _forward_context(session: Session) -> AbstractContextManager[Any]:
    """The precision of the forward pass, and plain attention where a method differentiates twice."""
    stack = ExitStack()
    if session.precision == "bf16":
        stack.enter_context(torch.autocast(session.device.type, torch.bfloat16))
    if any(method.needs_double_backward for method in session.methods):
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def _count(progress: Progress, loss: Tensor, penalty: Tensor | float) -> None:
    """Add a step to the epoch's sums, on the device, without waiting for it."""
    pair = torch.stack([loss, torch.as_tensor(penalty, dtype=loss.dtype, device=loss.device).detach()]).double()
    progress.sums = pair if progress.sums is None else progress.sums + pair
    progress.step += 1
