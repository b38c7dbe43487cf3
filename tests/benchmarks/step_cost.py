"""What a step of the product costs: over a bare loop, and of methods over a plain float step, in one run.

    python tests/benchmarks/step_cost.py [--device cuda] [--tiny]

The bare loop (bare_loop.py) has images in memory, fused Adam, no tracker and no augmentation, in the precision that the
product chooses. All take turns; a turn of the MLP is several steps in a row, since the weights and averages of one
network push those of another out of the cache, and a training has the cache for itself. `symreg` has trained for
STEADY steps before: its pull makes weights nearly symmetric, and what ranks cost must not depend on that.

For the large networks, a row of noise: the slowest round of the bare loop over its fastest; smaller differences are not
seen in so few rounds. For the goals of the MLP, rows of bounds: the bare loop (or plain step) with nothing but bytes
and calls added. Bytes: what a pass has to read and write, at the speed of copying a tensor of the network's size.
Calls: what the same additions take on a network of as many layers, but 2 units each, and a batch of 2. Both are the
least of many rounds.
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

from harness.methods.symreg import add_gradient
from harness.training.session import Session

BITS, STRENGTH = 3, 1.0
BARE, PLAIN = "bare loop", "plain float step"
#: Steps of symreg before it is measured.
STEADY = 300
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
        MLP, 128, 30, 8, {"none": 1.05, WHOLE: 1.15, SHARE: 1.15, "ste": 1.15, "lcq": 1.5, "symreg": 1.5}
    ),
    "MLP, batch 512": Case(MLP, 512, 6, 8, {"none": 1.05, WHOLE: 1.15, SHARE: 1.15}),
}


def sessions_of(case: Case, device: str, precision: str = "auto") -> dict[str, Session]:
    """One session for each thing that is measured. Only `WHOLE` augments; it and `naive` have a tracker.

    `naive` is left out where a step takes a second.
    """

    def session(method: str, augment: bool = False) -> Session:
        how = {"augment": augment, "device": device, "precision": precision}
        return make_session(configure(case.model, method, case.batch, **how))  # type: ignore[arg-type]

    methods = ["none", "ste", *(name for name in ("lcq", "symreg") if name in case.goals)]
    found = {method: untracked(session(method)) for method in methods}
    found[WHOLE] = session("oscillation", augment=True)
    if case.repeat > 1:
        naive = found["naive " + SHARE] = session("none")
        naive.methods = [NaiveRegularizer(naive.model, BITS, STRENGTH)]
        naive.trackers = {BITS: NaiveTracker(naive.model, BITS)}  # type: ignore[dict-item]
    return found


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

    def shares(self, repeat: int) -> list[float]:
        """Seconds of both in a step, the mean of each turn of `repeat` steps."""
        return [sum(self.calls[at : at + 2 * repeat]) / repeat for at in range(0, len(self.calls), 2 * repeat)]

    def ratio(self, turns: list[float], repeat: int) -> float:
        """The median of step / (step - both), over the turns that were timed: the last ones."""
        spent = self.shares(repeat)[-len(turns) :]
        return statistics.median(step / (step - share) for step, share in zip(turns, spent, strict=True))


def measured(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network."""
    clock, case = Clock(), CASES[name]
    if tiny:
        case = case._replace(model=TINY.get(name, TINY["mlp5"]), batch=8, rounds=2, repeat=min(2, case.repeat))
    # Many short steps in a row keep a GPU busy; one at a time would measure launches.
    repeat = case.repeat if device == "cpu" else 10
    sessions = sessions_of(case, device)
    # Within a step, since the noise from step to step is larger than what is measured; a GPU does not wait for either.
    timed = Timed(sessions[WHOLE]) if device == "cpu" else None
    works: dict[str, Callable[[], object]] = {key: Loop(session) for key, session in sessions.items()}
    works[BARE] = BareLoop(case.model, case.batch, sessions["none"].precision, device)
    warm = (2 if tiny else STEADY) if "symreg" in works else 0
    for _ in range(warm):
        works["symreg"]()
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
        if method == "symreg":
            rows[-1]["detail"] |= {"steps_before": warm, **sessions[method].methods[0].metrics()}
    if "symreg" in sessions and device == "cpu":
        rows.append(_pass_of_symreg(sessions["symreg"], name, times))
    if case.repeat == 1:
        noise = max(times[BARE]) / min(times[BARE])
        rows.append(figure(f"noise: slowest round over fastest, a step of {name}", BARE, noise, seconds=seconds))
    if CASES[name].model is MLP and device == "cpu":
        rows += _bounds(case, sessions, name, times, tiny)
    return rows


def _pass_of_symreg(session: Session, name: str, times: Mapping[str, list[float]]) -> Row:
    """What of its step symreg's own passes take, on weights that it has trained."""
    clock = Clock()
    weights = [layer.weight for layer in session.methods[0]._layers]  # type: ignore[attr-defined]

    spent = statistics.median(in_turn({"pass": lambda: add_gradient(weights, "one", 0.0)}, 20, warmup=2)["pass"])
    ratio = spent / statistics.median(times["none"])
    return figure(f"symreg: its passes alone, {name}", PLAIN, ratio, seconds=clock.lap(), ms=1e3 * spent)


#: Bytes per weight that must be read (r) and written (w) beyond those of the reference, by what is measured.
BYTES = {
    "none": (BARE, 0),
    # Regularizer: r weight and gradient, w gradient. Tracker: r weight and code (int8).
    WHOLE: (BARE, 4 * 3 + 4 + 1),
    SHARE: ("none", 4 * 3 + 4 + 1),
    # r weight for its largest, again to quantize (where a plain step casts it, too), and again for its gradient.
    "ste": ("none", 4 * 2),
    # r weight for its largest, to count, and for its gradient, which is added to the loss's: r, w that.
    "symreg": ("none", 4 * 3 + 4 * 2),
}
#: Layers as many as those of MLP, and next to no weights: what a step of it takes are calls.
NARROW = {"name": "mlp5", "hidden": [2, 2]}


def calls(case: Case, precision: str, rounds: int) -> dict[str, float]:
    """Seconds that each addition takes beyond its reference on a network and batch of next to no size."""
    small = case._replace(model=NARROW, batch=2)
    sessions = sessions_of(small, "cpu", precision)
    timed = Timed(sessions[WHOLE])
    works: dict[str, Callable[[], object]] = {key: Loop(sessions[key]) for key in BYTES if key in sessions}
    works[BARE] = BareLoop(small.model, small.batch, precision)
    least = {key: min(seconds) for key, seconds in in_turn(works, rounds, warmup=2, repeat=case.repeat).items()}
    found = {what: least[what] - least[reference] for what, (reference, _) in BYTES.items() if what in sessions}
    return found | {SHARE: min(timed.shares(case.repeat))}


def _bounds(
    case: Case, sessions: Mapping[str, Session], name: str, times: Mapping[str, list[float]], tiny: bool
) -> list[Row]:
    clock, weights = Clock(), sum(each.numel() for each in sessions["none"].model.parameters())
    called = calls(case, sessions["none"].precision, 2 if tiny else 50)
    source, target = torch.ones(weights), torch.ones(weights)
    copying = min(in_turn({"copy": lambda: target.copy_(source)}, 50)["copy"]) / (8 * weights)
    rows = []
    for what, (reference, size) in BYTES.items():
        if what not in called:
            continue
        plain, bytes_s, calls_s = statistics.median(times[reference]), size * weights * copying, max(0.0, called[what])
        details = {"bytes_per_weight": size, "weights": weights, "gb_per_s": 1e-9 / copying}
        details |= {"ms": 1e3 * (bytes_s + calls_s), "ms_of_bytes": 1e3 * bytes_s, "ms_of_calls": 1e3 * calls_s}
        label = f"bound of {what}, a step of {name}"
        shown = "the same step without" if what == SHARE else PLAIN if reference == "none" else reference
        ratio = (plain + bytes_s + calls_s) / plain
        rows.append(figure(label, shown, ratio, seconds=clock.lap(), **details))
    return rows


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [row for name in CASES for row in measured(name, device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("step_cost")
