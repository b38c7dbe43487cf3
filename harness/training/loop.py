"""The training loop. It names no method: methods act through hooks (harness/methods/base.py)."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.core.errors import Stopped
from harness.core.layer_points import in_words
from harness.core.seeding import sub_seed
from harness.data._ahead import drawn_ahead
from harness.data.base import order
from harness.methods.base import Method, Step
from harness.oscillation.tracker import metrics_of
from harness.quantization.observing import NotANumberError
from harness.records import schema
from harness.training.finite import TrainingError, check_gradients, check_loss, check_weights
from harness.training.optimizer import match_gradients
from harness.training.sections import TrainConfig
from harness.training.session import Progress, Session


def train(
    session: Session,
    epoch_done: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train until the last epoch or until patience runs out; the best epoch's weights are in `progress`.

    epoch_done gets the metrics of each epoch. Raises Stopped between two steps once it should stop, and
    TrainingError when a loss, a weight or a gradient is not finite.
    """
    settings, progress = session.config.train, session.progress
    if (progress.epoch, progress.step) == (0, 0):
        progress.first_histograms = {bits: own.threshold_histogram() for bits, own in session.trackers.items()}
    while progress.epoch < settings.epochs and not out_of_patience(progress, settings, session.methods):
        permutation = order(len(session.dataset.train), session.config.seed, progress.epoch, session.device)
        session.model.train()
        batches = permutation.split(settings.batch_size)[progress.step : session.steps_per_epoch]
        with drawn_ahead(session.dataset, batches):
            for indices in batches:
                if should_stop():
                    raise Stopped
                with session.stopwatch.step():
                    step(session, indices)
        session.stopwatch.epoch_done(session.device)
        epoch_done(_finish_epoch(session))


def step(session: Session, indices: Tensor) -> None:
    """One training step on the training samples at `indices`, int64 (B,). The host never waits for the device."""
    config, progress, model, methods = session.config, session.progress, session.model, session.methods
    now = Step(progress.epoch * session.steps_per_epoch + progress.step, session.total_steps, model)
    factor = learning_rate_factor(now.index, now.total, session.steps_per_epoch, config.train)
    for group, rate in zip(session.optimizer.param_groups, session.base_rates, strict=True):
        group["lr"] = rate * factor
    for method in methods:
        method.on_step_start(now)
    generator = session.generator.manual_seed(sub_seed(config.seed, "augment", now.index))
    now.inputs, now.targets = session.dataset.train_batch(indices, generator)
    now.forward = partial(_outputs, session, model)
    # A smaller last batch uses the plain model: compiling for its shape would not pay.
    whole = len(indices) == config.train.batch_size
    now.outputs = _outputs(session, session.forward if whole else model, now.inputs)
    now.task_loss = _task_loss(session, now.outputs, now.targets)
    if session.device.type == "cpu":
        check_loss(now.task_loss.item(), _when(progress), model)
    penalty = sum((method.penalty(now) for method in methods), start=0.0)
    session.optimizer.zero_grad()
    (now.task_loss + penalty if isinstance(penalty, Tensor) else now.task_loss).backward()  # a number has no gradient
    penalty = penalty + sum((method.after_backward(now) for method in methods), start=0.0)
    match_gradients(session.optimizer)
    if config.train.clip_norm is not None:
        _clip_gradients(session, config.train.clip_norm)
    session.optimizer.step()
    for method in methods:
        method.after_step(now)
    with session.stopwatch.left_out():
        for tracker in session.trackers.values():
            tracker.update()
    _count(progress, now.task_loss.detach(), penalty)


def _clip_gradients(session: Session, largest: float) -> None:
    """As clip_grad_norm_ does, but for gradients that are not finite, which it would spread to all layers."""
    parameters = list(session.model.parameters())
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if session.device.type == "cpu":
        check_gradients(norm, _when(session.progress), session.model)
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def _when(progress: Progress) -> str:
    return f"epoch {progress.epoch + 1}, step {progress.step + 1}"


def _outputs(session: Session, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The network's outputs in fp32, computed in the precision of the run."""
    with forward_context(session):
        return forward(inputs).float()


def _task_loss(session: Session, outputs: Tensor, targets: Tensor) -> Tensor:
    task, smoothing = session.task, session.config.train.label_smoothing
    return task.loss(outputs, targets, smoothing) if task.smooths_labels else task.loss(outputs, targets)


def _finish_epoch(session: Session) -> dict[str, Any]:
    progress = session.progress
    sums = [0.0, 0.0] if progress.sums is None else progress.sums.tolist()
    loss, penalty = (value / session.steps_per_epoch for value in sums)
    check_loss(loss, f"epoch {progress.epoch + 1}", session.model)
    check_weights(f"epoch {progress.epoch + 1}", session.model)
    progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, None
    metrics = {
        schema.EPOCH: progress.epoch,
        schema.TRAIN_LOSS: loss,
        schema.TRAIN_PENALTY: penalty,
        schema.LEARNING_RATE: session.optimizer.param_groups[0]["lr"],
        **metrics_of(session.trackers),
        **validate(session),
    }
    for method in session.methods:
        metrics |= method.metrics()
    return metrics


def validate(session: Session) -> dict[str, float]:
    """Validation metrics of the weights as they are; keeps them when they are the best so far."""
    progress, config = session.progress, session.config
    deploy, point = config.monitor.name, config.monitored_point
    # Of round-to-nearest, and of what the epoch is chosen by; other deploy methods are evaluated for the record.
    cases = dict.fromkeys([*(("rtn", each) for each in config.epoch_points), (deploy, point)])
    try:
        rows = session.evaluator.rows(session.model, config.phase, "val", cases)
    except NotANumberError as error:
        raise TrainingError(f"in epoch {progress.epoch}: {error}") from None
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise TrainingError(
                f"the validation loss ({in_words(schema.point(row))}) became {row['loss']} in epoch {progress.epoch}"
            )
        _check_score(session, row)
    metric = session.task.metric
    metrics, chosen_by = schema.as_metrics(rows, metric), schema.as_metrics(rows, metric, deploy)
    for name in (schema.score(metric, "val", point), schema.loss("val", point)):
        metrics[schema.after(name, deploy)] = chosen_by[name]
    metrics[schema.MONITOR] = monitored = chosen_by[schema.score(metric, "val", point)]
    eligible = progress.epoch >= first_eligible_epoch(config.train, session.methods)
    if eligible and (not progress.best_state or metric.better(monitored, progress.best_value)):
        progress.best_value, progress.best_epoch = monitored, progress.epoch
        progress.best_state = {name: tensor.detach().clone() for name, tensor in session.model.state_dict().items()}
    return metrics


def _check_score(session: Session, row: dict[str, Any]) -> None:
    try:
        session.task.metric.check(schema.score_of(row))
    except ValueError as error:
        where = in_words(schema.point(row))
        raise TrainingError(f"validation ({where}) in epoch {session.progress.epoch}: {error}") from None


def out_of_patience(progress: Progress, settings: TrainConfig, methods: list[Method]) -> bool:
    """Whether `patience` epochs have passed without improvement."""
    if settings.patience is None:
        return False
    since = max(progress.best_epoch, first_eligible_epoch(settings, methods) - 1)
    return progress.epoch - since >= settings.patience


def forward_context(session: Session) -> AbstractContextManager[Any]:
    """The precision of the forward pass; plain attention where that is faster or a method differentiates twice.

    On CPUs the backward pass of fused attention takes half of a ViT's whole step (harness/training/compilation.py).
    """
    stack = ExitStack()
    if session.precision == "bf16":
        stack.enter_context(torch.autocast(session.device.type, torch.bfloat16))
    if session.device.type == "cpu" or any(method.needs_double_backward for method in session.methods):
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def _count(progress: Progress, loss: Tensor, penalty: Tensor | float) -> None:
    """Add a step to the epoch's sums, on the device, without waiting for it."""
    # A number is filled in on the device; copying it there would wait for all queued work.
    value = penalty.detach() if isinstance(penalty, Tensor) else loss.new_full((), penalty)
    pair = torch.stack([loss.double(), value.double()])
    progress.sums = pair if progress.sums is None else progress.sums + pair
    progress.step += 1


def first_eligible_epoch(settings: TrainConfig, methods: Iterable[Method]) -> int:
    """The first epoch (from 1) that can be best: later than 1 for methods that train in stages."""
    start = max((method.selection_start for method in methods), default=0.0)
    # 1e-9: 0.29 of 100 epochs are 29, but not in binary. An epoch that ends where a stage begins is not part of it.
    return min(settings.epochs, math.floor(start * settings.epochs + 1e-9) + 1)


def learning_rate_factor(step: int, total: int, steps_per_epoch: int, settings: TrainConfig) -> float:
    """The factor of the base learning rate at a step: linear warm-up from 1/warm-up, then the schedule to 0."""
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
