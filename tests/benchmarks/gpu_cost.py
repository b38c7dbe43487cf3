"""The rows for a GPU: `python tests/benchmarks/gpu_cost.py --device cuda`; --device cpu --tiny only shows that it runs.

Throughput of whole training against the same compiled step on one fixed batch, and runs an hour of several workers
that share the GPU, through a real launch, against one at a time.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import bench_common
import torch
from bench_common import Loop, compared, configure, in_turn, make_session, models, settings, untracked
from bench_report import Clock, Row, figure
from optuna.trial import TrialState
from torch import Tensor
from torch.nn import functional

from harness.sweep import queue
from harness.training.session import Session

#: Workers that share the GPU, and runs of each launch: the first of each worker includes its start.
SHARED, RUNS_EACH = 6, 5
#: Epochs of 19 steps of a run: long enough that a run, not its claim, is measured.
EPOCHS = 40


def fixed_batch(session: Session) -> Session:
    """The session with one batch, drawn once, for all its steps."""
    drawn = session.dataset.train_batch(torch.arange(session.config.train.batch_size, device=session.device))

    def always(indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        return drawn

    object.__setattr__(session.dataset, "train_batch", always)  # frozen, but this session is nobody else's
    return session


class ByHand:
    """The same step written out, as a script would have it: compiled network, fused Adam, one fixed batch."""

    def __init__(self, session: Session) -> None:
        self.session = session
        session.model.train()
        indices = torch.arange(session.config.train.batch_size, device=session.device)
        inputs, self.labels = session.dataset.train_batch(indices)
        self.inputs = inputs.contiguous(memory_format=torch.channels_last)

    def __call__(self) -> None:
        session = self.session
        with torch.autocast(session.device.type, torch.bfloat16, enabled=session.precision == "bf16"):
            logits = session.forward(self.inputs)
        loss = functional.cross_entropy(logits.float(), self.labels)
        session.optimizer.zero_grad()
        loss.backward()
        session.optimizer.step()


def throughput(device: str, tiny: bool) -> list[Row]:
    """Whole training against a fixed batch: in the product's own step, and in one by hand."""
    clock, batch = Clock(), 8 if tiny else 128

    def session(method: str) -> Session:
        compiled = "auto" if tiny else "on"
        return make_session(configure(models(tiny)["resnet18"], method, batch, device=device, compiled=compiled))

    whole = session("oscillation")
    works: dict[str, Callable[[], object]] = {
        "whole": Loop(whole),
        "fixed": Loop(fixed_batch(untracked(session("none")))),
        "by hand": ByHand(session("none")),
    }
    times = in_turn(works, 1 if tiny else 30, warmup=1 if tiny else 5, device=device, repeat=1 if tiny else 20)
    rows, seconds = [], clock.lap()
    for name, reference, goal in (
        ("fixed", "the same step on one fixed batch", 0.85),
        ("by hand", "a step by hand on one fixed batch", None),
    ):
        found = compared(times, name, "whole")
        measured = found.pop("ratio")
        details = {
            "whole_ms": found.pop("reference_ms"),
            "fixed_ms": found.pop("ms"),
            "images_a_second": batch / (whole_s := min(times["whole"])),
            "fastest_whole_ms": 1e3 * whole_s,
            **found,
            **settings(whole),
        }
        what = "throughput of compiled ResNet-18 training, all included"
        rows.append(figure(what, reference, measured, goal=goal, compare=">=", seconds=seconds / 2, **details))
    return rows


def sweep(runs: int, runs_per_gpu: int, epochs: int) -> dict[str, Any]:
    """So many runs of an MLP on digits, without tuning."""
    return {
        "name": "shared",
        "base": {
            "data": {"name": "digits"},
            "model": {"name": "mlp5"},
            "train": {"epochs": epochs, "batch_size": 64},
            "deploy": {"bits": [2, 3, 4, 8], "scale": "recalibrate"},
            "runtime": {"wandb": "off"},
        },
        "cells": [{"methods": "oscillation", "grid": {"target_bit": [3]}}],
        "tune": {"trials": 0},
        "final": {"seeds": list(range(runs))},
        "runs_per_gpu": runs_per_gpu,
        "sampler": "random",
    }


@dataclass(frozen=True)
class Ran:
    """One finished run."""

    worker: str
    begun: datetime
    ended: datetime


def launch(workers: int, runs: int, epochs: int, device: str) -> tuple[list[Ran], float]:
    """A real local launch; its runs, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shared.yaml"
        path.write_text(json.dumps(sweep(runs, workers, epochs)), encoding="utf-8")  # JSON is YAML
        place = ["--gpus", "0"] if device.startswith("cuda") else []
        command = [sys.executable, "-m", "harness.launch", str(path), "--cluster", "local", "--root", folder, *place]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        clock = Clock()
        ended = subprocess.run(
            [*command, "--workers", str(workers)], env=environment, capture_output=True, text=True, check=False
        )
        seconds = clock.lap()
        if ended.returncode != 0:
            raise RuntimeError(f"the launch ended with {ended.returncode}\n{(ended.stdout + ended.stderr)[-3000:]}")
        found = queue.load_sweep(Path(folder) / "shared").finals.get_trials(states=(TrialState.COMPLETE,))
        done = [
            Ran(trial.user_attrs["worker"], trial.datetime_start, trial.datetime_complete)
            for trial in found
            if trial.datetime_start and trial.datetime_complete
        ]
        return done, seconds


def runs_an_hour(done: Sequence[Ran]) -> float:
    """While all workers were at it: from the end of the slowest one's first run to the start of the last run.

    A long sweep spends its time there; the start of the workers, and the last ones working alone, are left out.
    """
    firsts: dict[str, datetime] = {}
    for ran in sorted(done, key=lambda ran: ran.ended):
        firsts.setdefault(ran.worker, ran.ended)
    begin, end = max(firsts.values()), max(ran.begun for ran in done)
    if end <= begin:
        raise RuntimeError("too few runs: the workers were never all at work")
    # A run counts by the part of it that lies in the window.
    window = (end - begin).total_seconds()
    share = sum(
        max(0.0, (min(ran.ended, end) - max(ran.begun, begin)).total_seconds())
        / max(1e-9, (ran.ended - ran.begun).total_seconds())
        for ran in done
    )
    return 3600 * share / window


def sharing(device: str, tiny: bool) -> Row:
    """Runs an hour, several workers on the GPU over one."""
    clock = Clock()
    whole = (2, 3, 1) if tiny else (SHARED, RUNS_EACH, EPOCHS)
    shared, each, epochs = whole if bench_common.ROUNDS_SHARE == 1 else (whole[0], 3, min(whole[2], EPOCHS // 2))
    rates: dict[int, float] = {}
    table = []
    for workers in (1, shared):
        done, seconds = launch(workers, workers * each, epochs, device)
        rates[workers] = runs_an_hour(done)
        counts: dict[str, int] = defaultdict(int)
        for ran in done:
            counts[ran.worker] += 1
        longest = max((ran.ended - ran.begun).total_seconds() for ran in done)
        table.append(
            {
                "runs at once": workers,
                "runs": len(done),
                "runs an hour": rates[workers],
                "longest run s": longest,
                "whole launch s": seconds,
                "by worker": "/".join(str(count) for count in counts.values()),
            }
        )
    what = f"tiny runs (MLP, digits), {shared} share the GPU: runs an hour"
    measured = rates[shared] / rates[1]
    reference = "one at a time"
    return figure(what, reference, measured, goal=4.0, compare=">=", seconds=clock.lap(), table=table)


def measure(device: str = "cuda", tiny: bool = False) -> list[Row]:
    """All rows."""
    return [*throughput(device, tiny), sharing(device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("gpu_cost")
