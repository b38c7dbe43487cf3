"""How cost grows: with weights, bit-widths, trials and workers. Small tables; nothing here has a goal.

python tests/benchmarks/growth_cost.py [--device cuda] [--tiny]
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import queue_cost
import torch
from bench_common import Loop, clocked, configure, in_turn, make_session, models
from bench_report import Clock, Row, figure
from torch import nn

WIDTHS = (16, 32, 64)
BITS = (2, 3, 4, 5, 6, 7, 8)
TRIALS = (100, 1000)
WORKERS = (1, 2, 4)


def stopwatch(work: Callable[..., Any], device: str, into: list[float]) -> Callable[..., Any]:
    """The same function; seconds of each call come to `into`."""

    def timed(*arguments: Any) -> Any:
        answer: list[Any] = []
        into.append(clocked(lambda: answer.append(work(*arguments)), device))
        return answer[0]

    return timed


def weights_line(width: int, device: str, steps: int) -> dict[str, Any]:
    """Regularizer and tracker in real training steps of a ResNet-18 of some width: weights that stood still would
    cost the tracker less."""
    config = configure({"name": "resnet18", "width": width}, "oscillation", 16, device=device, epochs=1)
    session = make_session(config, train=256)  # so few steps that the network itself is not compiled
    times: dict[str, list[float]] = {"regularizer": [], "tracker": []}
    method: Any = session.methods[0]
    tracker: Any = session.tracker
    method.after_backward = stopwatch(method.after_backward, device, times["regularizer"])
    tracker.update = stopwatch(tracker.update, device, times["tracker"])
    loop = Loop(session)
    for _ in range(steps + 3):
        loop()
    layers = [layer for layer in session.model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    millions = sum(layer.weight.numel() for layer in layers) / 1e6
    regularizer, tracked = (1e3 * statistics.median(times[name][3:]) for name in ("regularizer", "tracker"))
    return {
        "width": width,
        "million weights": round(millions, 2),
        "regularizer ms": regularizer,
        "tracker ms": tracked,
        "both, ms per million": (regularizer + tracked) / millions,
    }


def by_weights(device: str, tiny: bool) -> Row:
    """One line a width."""
    clock = Clock()
    table = [weights_line(width, device, 2 if tiny else 12) for width in ((4, 8) if tiny else WIDTHS)]
    last = float(table[-1]["both, ms per million"])
    what = "growth with weights: regularizer + tracker, a step of ResNet-18 at several widths"
    return figure(what, "a million weights", last, unit="ms", seconds=clock.lap(), table=table)


def by_bits(device: str, tiny: bool) -> Row:
    """Evaluation of one network at 1 to 7 bit-widths, always with float besides."""
    clock = Clock()
    model = models(tiny)["resnet18"] | ({} if tiny else {"width": 16})
    works: dict[str, Callable[[], object]] = {}
    for count in (1, 3, 5, len(BITS)):
        session = make_session(configure(model, bits=BITS[:count], device=device), train=256, val=32 if tiny else 250)
        works[str(count)] = _validation(session)
    times = in_turn(works, 1 if tiny else 2, warmup=1, device=device)
    seconds = {int(count): statistics.median(values) for count, values in times.items()}
    table = [
        {"bit-widths, with float": count + 1, "seconds": value, "seconds each": value / (count + 1)}
        for count, value in seconds.items()
    ]
    each = (seconds[len(BITS)] - seconds[1]) / (len(BITS) - 1)
    what = "growth with bits: one more bit-width, ResNet-18 of quarter width, 250 images"
    return figure(what, "an evaluation", each, unit="s", seconds=clock.lap(), table=table)


def _validation(session: Any) -> Callable[[], object]:
    return lambda: session.evaluator.rows(session.model, session.config.phase, "val")


def queue_line(trials: int, workers: int) -> dict[str, Any]:
    """No-op runs drawn from one storage."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        found = queue_cost.simulate(Path(folder), trials, workers)
        took = time.perf_counter() - begun
    return {
        "trials": trials,
        "workers": workers,
        "claim ms at first": 1e3 * found["claim_s_first_quarter"]["median"],
        "claim ms at last": 1e3 * found["claim_s_last_quarter"]["median"],
        "p95 at last": 1e3 * found["claim_s_last_quarter"]["p95"],
        "runs a second": found["runs_per_second"],
        "seconds": took,
        "ran twice": found["ran_twice"],
        "left": found["left"],
    }


def by_queue(what: str, cases: list[tuple[int, int]]) -> Row:
    """One line a simulation; every trial must have run once."""
    clock = Clock()
    table = [queue_line(trials, workers) for trials, workers in cases]
    wrong = [line for line in table if line["ran twice"] or line["left"]]
    if wrong:
        raise RuntimeError(f"the queue lost or repeated trials: {wrong}")
    return figure(what, "a claim", float(table[-1]["claim ms at last"]), unit="ms", seconds=clock.lap(), table=table)


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """All four; the queue knows no device, so it is left out on a GPU."""
    rows = [by_weights(device, tiny), by_bits(device, tiny)]
    if device == "cpu":
        torch.compiler.reset()
        trials = [(20, 2)] if tiny else [(count, 2) for count in TRIALS]
        workers = [(20, 1)] if tiny else [(200, count) for count in WORKERS]
        rows.append(by_queue("growth with trials: claims of no-op runs, 2 workers", trials))
        rows.append(by_queue("growth with workers: claims of no-op runs, 200 trials", workers))
    return rows


if __name__ == "__main__":
    from bench import run_alone

    run_alone("growth_cost")
