"""What could bring a full paper table to an hour of one H200: arithmetic on committed records, no measurement.

    python tests/benchmarks/table_levers.py

The table: sweeps/resnet18.yaml, all of its trials and finals. Where it starts: what an epoch takes in the records of
sweeps/resnet18_short.yaml, with that many runs at a time on one H200, evaluation, start and end of runs included.

Patience ends runs in the records of sweeps/mlp5.yaml (patience 10 of 30 epochs, constant rate), another network; no
record of a long ResNet-18 exists. No committed record was pruned, so pruning is a bound, and what a median does: all,
or half, of the trials after those that must end first are pruned at the first check. More runs at once, or faster
steps, were measured on no GPU beyond these records: they are the factor that is still needed, with two bounds of it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from bench_report import Clock, Row, figure

from harness.records.archive import runs_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "analysis/results"
SWEEP, MEASURED, ENDED = "resnet18", "resnet18_short", "mlp5"
METHODS = ("none", "ste", "oscillation")
GOAL_H = 1.0
#: Training images once a tenth validates, and operations a second that an H200 reaches in large bf16 products.
TRAIN_IMAGES, TFLOPS = 45_000, 400
#: The lines that rows are made of.
LIKELY, BOUND = "patience (share) and pruning (half)", f"both, and steps at {TFLOPS} TFLOP/s (bound)"


class Run(NamedTuple):
    """Of a committed record: `epochs` of at most `most`; seconds of the whole run, milliseconds of a step."""

    method: str
    phase: str
    epochs: int
    most: int
    wall_s: float = 0.0
    step_ms: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether patience ended it."""
        return self.epochs < self.most


class Pruning(NamedTuple):
    """Of the `trials` of a cell those after the first `startup` may be pruned, once `epochs` of each are over."""

    trials: int
    startup: int
    epochs: int


def runs(sweep: str, results: Path = RESULTS) -> list[Run]:
    """Of a committed sweep, those of the methods of the table by themselves."""
    found = []
    for folder in runs_of(results / sweep).iterdir():
        record = json.loads(folder.joinpath("record.json").read_text(encoding="utf-8"))
        methods = record["config"]["methods"]
        names = [each if isinstance(each, str) else each["name"] for each in methods] or ["none"]
        if len(names) == 1 and names[0] in METHODS:
            most, took = record["config"]["train"]["epochs"], record["provenance"]
            seconds = took["wall_time_s"], took["step_ms"]
            found.append(Run(names[0], record["phase"], record["epochs"], most, *seconds))
    return found


def pruning_of(spec: Mapping[str, Any]) -> Pruning:
    """By the pruner of a sweep, a median. The check after `n_warmup_steps` epochs is the first."""
    pruner = spec["pruner"]
    return Pruning(spec["tune"]["trials"], pruner["n_startup_trials"], max(1, pruner["n_warmup_steps"]))


def shares(found: Sequence[Run], epochs: int, alike: bool) -> dict[tuple[str, str], float]:
    """Of `epochs`, those that runs train, by method and phase.

    alike: a run that patience ended would end at the same epoch, and others train all; else each trains the same share.
    """
    own: dict[tuple[str, str], list[float]] = {}
    for run in found:
        share = run.epochs / (epochs if alike and run.ended else run.epochs if alike else run.most)
        own.setdefault((run.method, run.phase), []).append(share)
    return {key: sum(values) / len(values) for key, values in own.items()}


def epochs_left(
    spec: Mapping[str, Any], trained: Mapping[tuple[str, str], float], pruning: Pruning | None, pruned_share: float
) -> float:
    """Epochs of the whole sweep. trained: shares of the epochs of a run, by method and phase; no entry: all."""
    epochs, trials, finals = spec["base"]["train"]["epochs"], spec["tune"]["trials"], len(spec["final"]["seeds"])
    total = 0.0
    for cell in spec["cells"]:
        tuned, final = (trained.get((cell["methods"], phase), 1.0) * epochs for phase in ("tune", "final"))
        pruned = pruned_share * (pruning.trials - pruning.startup) if pruning else 0.0
        last = min(tuned, pruning.epochs) if pruning else tuned
        cells = len(cell.get("grid", {}).get("target_bit", [None]))
        total += cells * ((trials - pruned) * tuned + pruned * last + finals * final)
    return total


def likely_share(method: str, results: Path = RESULTS, sweeps: Path = ROOT / "sweeps") -> float:
    """What is left of the epochs of a method's cells by LIKELY."""
    spec = yaml.safe_load((sweeps / f"{SWEEP}.yaml").read_text("utf-8"))
    own = {**spec, "cells": [cell for cell in spec["cells"] if cell["methods"] == method]}
    trained = shares(runs(ENDED, results), spec["base"]["train"]["epochs"], alike=False)
    return epochs_left(own, trained, pruning_of(spec), 0.5) / epochs_left(own, {}, None, 0.0)


class Speed(NamedTuple):
    """Of one GPU with `at_once` runs: seconds an epoch, of its steps alone, and of these at TFLOPS."""

    at_once: int
    epoch_s: float
    steps_s: float
    bound_s: float


def speed(found: Sequence[Run], at_once: int, batch: int, flop: float) -> Speed:
    """By the records of runs that went at once. flop: floating-point operations of a step."""
    epochs, steps = sum(run.epochs for run in found), TRAIN_IMAGES / batch
    of_step = sum(run.step_ms * run.epochs for run in found) / epochs / 1e3
    epoch_s = sum(run.wall_s for run in found) / epochs
    return Speed(at_once, epoch_s / at_once, steps * of_step / at_once, steps * flop / TFLOPS / 1e12)


def levers(spec: Mapping[str, Any], ended: Sequence[Run], reached: Speed) -> list[dict[str, Any]]:
    """One line for each lever, and for those that go together: what is left of the epochs, and hours."""
    everything = epochs_left(spec, {}, None, 0.0)
    pruning, epochs = pruning_of(spec), spec["base"]["train"]["epochs"]
    share, same = (shares(ended, epochs, alike) for alike in (False, True))
    trials, epoch_s = f"{pruning.trials - pruning.startup} of {pruning.trials} trials", reached.epoch_s
    cases: list[tuple[str, Mapping[tuple[str, str], float], float, float]] = [
        (f"none: {reached.at_once} runs at once, all epochs", {}, 0.0, epoch_s),
        (f"patience: the share of epochs as in {ENDED}", share, 0.0, epoch_s),
        ("patience: the same epochs as there", same, 0.0, epoch_s),
        (f"pruning: half of the {trials} that may be", {}, 0.5, epoch_s),
        (f"pruning: all of the {trials} that may be (bound)", {}, 1.0, epoch_s),
        ("evaluation, start and end of runs free (bound)", {}, 0.0, reached.steps_s),
        (f"the same, and steps at {TFLOPS} TFLOP/s (bound)", {}, 0.0, reached.bound_s),
        (LIKELY, share, 0.5, epoch_s),
        ("patience (same epochs) and pruning (all: bound)", same, 1.0, epoch_s),
        (BOUND, share, 0.5, reached.bound_s),
    ]
    lines = []
    for what, trained, pruned, seconds in cases:
        left = epochs_left(spec, trained, pruning, pruned)
        hours, share_left = left * seconds / 3600, f"{100 * left / everything:.0f} %"
        gain = everything * epoch_s / 3600 / hours
        lines.append({"lever": what, "epochs left": share_left, "gain": gain, "hours": hours, "needed": hours / GOAL_H})
    return lines


def flop_of_step(batch: int) -> float:
    """Of the network of the table: forward and backward pass, as torch counts products and convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from harness.models import build_model
    from harness.training.config import component

    model = build_model(component("model", {"name": SWEEP}), (3, 32, 32), 10, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32)).sum().backward()
    return float(counter.get_total_flops()) * batch / 2


def measure(results: Path = RESULTS, sweeps: Path = ROOT / "sweeps") -> list[Row]:
    """Hours without a lever, with the table of them; with the likely ones; and the bound of that."""
    clock = Clock()
    spec, short = (yaml.safe_load((sweeps / f"{name}.yaml").read_text("utf-8")) for name in (SWEEP, MEASURED))
    batch = spec["base"]["train"]["batch_size"]
    flop = flop_of_step(batch)
    reached = speed(runs(MEASURED, results), short["runs_per_gpu"], batch, flop)
    lines = levers(spec, runs(ENDED, results), reached)
    hours = {line["lever"]: line["hours"] for line in lines}
    what, reference = f"{SWEEP}.yaml whole, hours of one H200", f"the records of {MEASURED}"
    details = {**reached._asdict(), "gflop_of_step": flop / 1e9, "epochs": epochs_left(spec, {}, None, 0.0)}
    likely = f"{what}, {LIKELY}"
    return [
        figure(what, reference, lines[0]["hours"], unit="h", seconds=clock.lap(), **details, table=lines),
        figure(likely, reference, hours[LIKELY], goal=GOAL_H, unit="h", seconds=0.0),
        figure(f"bound of {likely}: at {TFLOPS} TFLOP/s", reference, hours[BOUND], unit="h", seconds=0.0),
    ]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("table_levers")
