"""What a step of the product costs: over a bare loop, and of methods over a plain float step, in one run.

    python tests/benchmarks/step_cost.py [--device cuda] [--tiny]

The bare loop (bare_loop.py) has images in memory, fused Adam, no tracker and no augmentation, in the precision that the
product chooses. All take turns; a turn of the MLP is several steps in a row, since the weights and averages of one
network push those of another out of the cache, and a training has the cache for itself.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from bare_loop import BareLoop
from bench_common import TINY, Loop, compared, configure, in_turn, make_session, models, settings, untracked
from bench_report import Clock, Row, figure
from naive_oscillation import NaiveRegularizer, NaiveTracker
from torch import Tensor

from harness.kernels import cpu_symmetry
from harness.training.session import Session

BITS, STRENGTH = 3, 1.0
BARE, PLAIN = "bare loop", "plain float step"
WHOLE, SHARE = "regularizer + tracker + augmentation", "regularizer + tracker"
#: The network of the notebook released with arXiv 2502.00490.
MLP = {"name": "mlp5", "hidden": [256, 128]}


class Case(NamedTuple):
    """model, batch; rounds that are timed, and steps of a turn; the goals by what is measured."""

    model: dict[str, Any]
    batch: int
    rounds: int
    repeat: int
    goals: Mapping[str, float]


CASES = {
    "resnet18": Case(models(False)["resnet18"], 128, 4, 1, {"none": 1.05, WHOLE: 1.03, SHARE: 1.05, "ste": 1.10}),
    "vit_tiny": Case(models(False)["vit_tiny"], 128, 4, 1, {"none": 1.05, WHOLE: 1.03, SHARE: 1.05}),
    "MLP, batch 128": Case(
        MLP, 128, 10, 8, {"none": 1.05, WHOLE: 1.15, SHARE: 1.15, "ste": 1.15, "lcq": 1.5, "symreg": 1.5}
    ),
    "MLP, batch 512": Case(MLP, 512, 6, 8, {"none": 1.05, WHOLE: 1.15, SHARE: 1.15}),
}


def sessions_of(case: Case, device: str) -> dict[str, Session]:
    """One session for each thing that is measured. Only `WHOLE` augments; it and `naive` have a tracker."""

    def session(method: str, augment: bool = False) -> Session:
        return make_session(configure(case.model, method, case.batch, augment=augment, device=device))

    naive = session("none")
    naive.methods = [NaiveRegularizer(naive.model, BITS, STRENGTH)]
    naive.trackers = {BITS: NaiveTracker(naive.model, BITS)}  # type: ignore[dict-item]
    methods = ["none", "ste", *(name for name in ("lcq", "symreg") if name in case.goals)]
    found = {method: untracked(session(method)) for method in methods}
    return found | {WHOLE: session("oscillation", augment=True), "naive " + SHARE: naive}


class Timed:
    """Seconds that the regularizer and the tracker take within a step, a list entry a call of either."""

    def __init__(self, session: Session) -> None:
        self.calls: list[float] = []
        session.methods[0].after_backward = self.wrapped(session.methods[0].after_backward)  # type: ignore[method-assign]
        session.tracker.update = self.wrapped(session.tracker.update)  # type: ignore[method-assign]

    def wrapped(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            result = work(*arguments)
            self.calls.append(time.perf_counter() - begun)
            return result

        return timed

    def ratio(self, turns: list[float], repeat: int) -> float:
        """The median of step / (step - both), over the turns that were timed: the last ones."""
        both = [sum(self.calls[at : at + 2 * repeat]) / repeat for at in range(0, len(self.calls), 2 * repeat)]
        spent = both[-len(turns) :]
        return statistics.median(step / (step - share) for step, share in zip(turns, spent, strict=True))


def measured(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network."""
    clock, case = Clock(), CASES[name]
    if tiny:
        case = case._replace(model=TINY.get(name, TINY["mlp5"]), batch=8, rounds=2, repeat=2)
    # Many short steps in a row keep a GPU busy; one at a time would measure launches.
    repeat = case.repeat if device == "cpu" else 10
    sessions = sessions_of(case, device)
    # Within a step, since the noise from step to step is larger than what is measured; a GPU does not wait for either.
    timed = Timed(sessions[WHOLE]) if device == "cpu" else None
    works: dict[str, Callable[[], object]] = {key: Loop(session) for key, session in sessions.items()}
    works[BARE] = BareLoop(case.model, case.batch, sessions["none"].precision, device)
    times = in_turn(works, case.rounds, warmup=1, device=device, repeat=repeat)
    seconds, rows = clock.lap() / (len(works) + 1), list[Row]()

    def row(what: str, reference: str, label: str, ratio: float | None = None) -> None:
        found = compared(times, what, reference)
        of_steps = found.pop("ratio")
        how = {**found, "ratio_of_steps": of_steps, "batch": case.batch, **settings(sessions[what])}
        shown = of_steps if ratio is None else ratio
        rows.append(
            figure(f"{label}, a step of {name}", reference, shown, goal=case.goals.get(label), seconds=seconds, **how)
        )

    row("none", BARE, "none")
    row(WHOLE, BARE, WHOLE)
    if timed:
        row(WHOLE, "none", SHARE, timed.ratio(times[WHOLE], repeat))
        rows[-1]["reference"] = "the same step without"
    for method in [key for key in sessions if key not in ("none", WHOLE)]:
        row(method, "none", method)
        rows[-1]["reference"] = PLAIN
    if "symreg" in case.goals:
        rows.append(_pass_of_symreg(sessions["symreg"], name, statistics.median(times["none"])))
    return rows


def _pass_of_symreg(session: Session, name: str, plain_s: float) -> Row:
    """What bounds symreg: ranks of all weights, here of as many as are almost symmetric, which it makes of them."""
    clock = Clock()
    weights = [layer.weight.detach() for layer in session.methods[0]._layers]  # type: ignore[attr-defined]
    largest = max(weights, key=Tensor.numel).clone()
    flat = largest.view(-1)
    flat[1::2] = -flat[::2] * (1 + 1e-3 * torch.randn(len(flat) // 2))
    works: dict[str, Callable[[], object]] = {
        "random": lambda: [cpu_symmetry.symmetry(weight, fours=False) for weight in weights],
        "symmetric": lambda: cpu_symmetry.symmetry(largest, fours=False),
        "sorting": lambda: flat.sort(),
    }
    times = in_turn(works, 5, warmup=1)
    found = {key: statistics.median(values) for key, values in times.items()}
    details = {f"{key}_ms": 1e3 * value for key, value in found.items()}
    return figure(f"symreg: its pass alone, {name}", PLAIN, found["random"] / plain_s, seconds=clock.lap(), **details)


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [row for name in CASES for row in measured(name, device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("step_cost")
