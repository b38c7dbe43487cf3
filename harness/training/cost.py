"""What a run takes on this machine, from a few of its steps and evaluations."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.data.base import order
from harness.training.build import build
from harness.training.config import RunConfig
from harness.training.evaluator import Case, Deployment
from harness.training.loop import step
from harness.training.session import Session
from harness.training.trial_build import random_weights

#: Steps that are measured, at least; short ones are repeated for so many seconds.
STEPS, MEASURE_S = 2, 0.2
#: An evaluation of the whole validation split is measured if it takes no longer; else that of one batch is scaled.
WHOLE_EVALUATION_S = 1.0


@dataclass(frozen=True)
class Cost:
    """Seconds: to build a run, of a step, and of one evaluation of the validation split at all bit-widths.

    steps: of an epoch. monitor_s: of an epoch's further evaluation, after `monitor.deploy`. deploys: ways of deployment
    that the record evaluates. test_over_val: samples of both splits.
    """

    start_s: float
    step_s: float
    evaluation_s: float
    steps: int
    deploys: int = 1
    test_over_val: float = 1.0
    monitor_s: float = 0.0

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch with its evaluation."""
        return self.steps * self.step_s + self.evaluation_s + self.monitor_s

    def run_s(self, epochs: int, final: bool) -> float:
        """Seconds of a run that trains all its epochs; a final run reads the test split too."""
        record_s = self.deploys * self.evaluation_s * (1 + (self.test_over_val if final else 0.0))
        return self.start_s + epochs * self.epoch_s + record_s


#: A first network that takes longer to build is not built again.
COLD_S = 20.0
#: Not empty until a network was measured in this process.
_cold = [True]


def measure(config: RunConfig) -> Cost:
    """Build a run and carry out a few of its steps, compiled as it would be. Raises UserError as `build` does.

    The seconds of compiling are left out: a sweep's later runs find the result in torch's cache. So is what a process
    imports and opens once: of its first network, unless that takes long, only the second measurement counts.
    """
    found = _measured(config)
    if not _cold:
        return found
    _cold.clear()
    return _measured(config) if found.start_s < COLD_S else found


def _measured(config: RunConfig) -> Cost:
    threads = torch.get_num_threads()
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # the run itself gives them
            session = build(random_weights(config))
            start_s = time.perf_counter() - begun
            step_s = _step_s(session)
            evaluation_s = _evaluation_s(session, [("rtn", point) for point in session.evaluator.points])
            chosen_by = (config.monitor.name, config.monitored_point)
            monitor_s = 0.0 if config.monitor.name == "rtn" else _evaluation_s(session, [chosen_by])
    finally:
        torch.set_num_threads(threads)
    dataset = session.dataset
    return Cost(
        start_s=start_s,
        step_s=step_s,
        evaluation_s=evaluation_s,
        steps=session.steps_per_epoch,
        deploys=len(session.evaluator.deploys),
        test_over_val=len(dataset.test) / len(dataset.val),
        monitor_s=monitor_s,
    )


def _step_s(session: Session) -> float:
    indices = order(len(session.dataset.train), session.config.seed, 0, session.device)
    batch = indices[: session.config.train.batch_size]
    session.model.train()
    for _ in range(2):  # the first compiles, asks for memory and makes the optimizer's states
        step(session, batch)
    count, spent = 0, 0.0
    while count < STEPS or spent < MEASURE_S:
        spent += _seconds(session, lambda: step(session, batch))
        count += 1
    return spent / count


def _evaluation_s(session: Session, cases: list[Case]) -> float:
    """Of the whole validation split, as after each epoch.

    Only what samples cost is scaled: to deploy a network may take many passes over training batches.
    """
    val, deployed = session.dataset.val, list[Deployment]()
    part = min(len(val), session.config.train.batch_size)
    deploy_s = _seconds(session, lambda: deployed.extend(session.evaluator.deployments(session.model, cases)))

    def evaluate(samples: int) -> float:
        dataset: Any = session.dataset  # a dataclass, whatever its task
        evaluator = replace(session.evaluator, dataset=replace(dataset, val=dataset.first(val, samples)))
        return _seconds(session, lambda: evaluator.rows_of(deployed, session.config.phase, "val"))

    whole_s = evaluate(part) * len(val) / part
    return deploy_s + (evaluate(len(val)) if whole_s < WHOLE_EVALUATION_S else whole_s)


def _seconds(session: Session, work: Callable[[], object]) -> float:
    _wait(session.device)
    begun = time.perf_counter()
    work()
    _wait(session.device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
