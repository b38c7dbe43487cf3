"""What regularizer, tracker and QAT cost: the time of a training step over that of a plain float step.

    python tests/benchmarks/step_cost.py [--device cuda] [--tiny]

All steps are the product's own, at the same precision and settings, without augmentation.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench_common import Loop, compared, configure, in_turn, make_session, models, settings, untracked
from bench_report import Clock, Row, figure
from naive_oscillation import NaiveRegularizer, NaiveTracker

from harness.training.session import Session

#: Rounds that are timed, and the goals by variant; a row without a goal is reported.
CASES: dict[str, tuple[int, dict[str, float]]] = {
    "resnet18": (6, {"regularizer + tracker": 1.05, "ste": 1.10}),
    "vit_tiny": (6, {"regularizer + tracker": 1.05}),
    "mlp5": (150, {"regularizer + tracker": 1.15}),
}
BITS = 3
STRENGTH = 1.0
PLAIN = "plain float step"


def variants(model: dict[str, Any], device: str, batch: int) -> dict[str, Session]:
    """One session a variant. The plain step and QAT proper go without a tracker."""

    def session(method: str) -> Session:
        return make_session(configure(model, method, batch, augment=False, device=device))

    naive = session("none")
    naive.methods = [NaiveRegularizer(naive.model, BITS, STRENGTH)]
    naive.trackers = {BITS: NaiveTracker(naive.model, BITS)}  # type: ignore[dict-item]
    return {
        "plain": untracked(session("none")),
        "regularizer + tracker": session("oscillation"),
        "naive regularizer + tracker": naive,
        "ste": untracked(session("ste")),
    }


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

    def ratio(self, steps: list[float]) -> float:
        """The median of step / (step - both), over the steps that were timed: the last ones."""
        both = [sum(self.calls[at : at + 2]) for at in range(0, len(self.calls), 2)][-len(steps) :]
        return statistics.median(step / (step - spent) for step, spent in zip(steps, both, strict=True))


def case(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network."""
    clock = Clock()
    rounds, goals = CASES[name]
    sessions = variants(models(tiny)[name], device, 8 if tiny else 128)
    # Within a step, since the noise from step to step is larger than what is measured; a GPU does not wait for either.
    timed = Timed(sessions["regularizer + tracker"]) if device == "cpu" else None
    loops: dict[str, Callable[[], object]] = {variant: Loop(session) for variant, session in sessions.items()}
    # Many short steps in a row keep a GPU busy; one at a time would measure launches.
    repeat = 1 if device == "cpu" else 10
    times = in_turn(loops, 2 if tiny else rounds, warmup=1 if tiny else 2, device=device, repeat=repeat)
    seconds = clock.lap() / (len(sessions) - 1)
    rows = []
    for variant in list(sessions)[1:]:
        found = compared(times, variant, "plain")
        measured = found.pop("ratio")
        if timed and variant == "regularizer + tracker":
            found["ratio_of_steps_in_turn"], measured = measured, timed.ratio(times[variant])
        how = settings(sessions[variant])
        what = f"{variant}, a step of {name}"
        rows.append(figure(what, PLAIN, measured, goal=goals.get(variant), seconds=seconds, **found, **how))
    return rows


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [row for name in CASES for row in case(name, device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("step_cost")
