"""What the tests in test_studies_*.py share."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from harness.records.files import read_json
from harness.sweep import plan, queue
from harness.sweep.config import SweepConfig
from harness.sweep.queue import Claim, OpenSweep

RATE = {"low": 1e-4, "high": 1e-2, "log": True}


RAW: dict[str, Any] = {
    "name": "s",
    "base": {
        "data": {"name": "digits"},
        "model": {"name": "mlp5", "width": 8},
        "train": {"epochs": 1},
        "deploy": {"bits": [2, 3], "scale": "recalibrate"},
    },
    "cells": [{"methods": "ste", "grid": {"target_bit": [2, 3]}, "search": {"train.learning_rate": RATE}}],
    "tune": {"trials": 3},
    "final": {"seeds": [0, 1]},
    "sampler": "random",
}


TWO = "ste,target_bit=2"


THREE = "ste,target_bit=3"


def raw(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(RAW), **changes}


def open_sweep(root: Path, **changes: Any) -> OpenSweep:
    return queue.open_sweep(SweepConfig.model_validate(raw(**changes)), root)


def record(accuracy: float, loss: float = 1.0, **by_bits: float) -> dict[str, Any]:
    """What a run would have recorded: the same accuracy at all bits, or `w2=0.5`."""
    return {
        "rows": [
            {
                "split": "val",
                "deploy": "rtn",
                "scale": "recalibrate",
                "bits": bits,
                "accuracy": by_bits.get(f"w{bits}", accuracy),
                "loss": loss,
            }
            for bits in (2, 3, "float")
        ]
    }


def claims(sweep: OpenSweep, worker: str = "w") -> list[Claim]:
    """All that can be claimed now."""
    found = []
    while (claim := queue.claim(sweep, worker)) is not None:
        found.append(claim)
    return found


def tell(sweep: OpenSweep, claim: Claim, record: dict[str, Any]) -> None:
    """Finish a claimed trial with its record."""
    assert claim.run_id  # the trial knows it from here on
    queue.tell(claim, queue.objectives(sweep, claim, record))


def finish_tuning(sweep: OpenSweep, values: Callable[[Claim], dict[str, Any]]) -> None:
    plan.top_up(sweep)
    for claim in claims(sweep):
        assert claim.phase == "tune"
        tell(sweep, claim, values(claim))
    plan.top_up(sweep)


def states(sweep: OpenSweep, cell: str) -> Counter[str]:
    return Counter(trial.state.name for trial in sweep.studies[cell].get_trials(deepcopy=False))


def final_runs(sweep: OpenSweep) -> list[tuple[str, int, str]]:
    trials = sweep.finals.get_trials(deepcopy=False)
    return [tuple(trial.user_attrs[key] for key in ("cell", "seed", "run_id")) for trial in trials]  # type: ignore[misc]


def cells(sweep: OpenSweep) -> dict[str, dict[str, Any]]:
    return {cell["id"]: cell for cell in read_json(sweep.folder / "cells.json")["cells"]}
