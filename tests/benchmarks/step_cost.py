"""What regularizer, tracker and QAT cost: the time of a training step over that of a plain float step.

    python tests/benchmarks/step_cost.py [--device cuda] [--tiny]

All steps are the product's own, at the same precision and settings, without augmentation.
"""

from collections.abc import Callable
from typing import Any

from bench_common import Loop, compared, configure, in_turn, make_session, models, settings, untracked
from bench_report import Clock, Row, figure
from naive_oscillation import NaiveRegularizer, NaiveTracker

from harness.train import Session

#: Rounds that are timed, and the goals by variant; what stands below and has no goal is reported.
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
    naive.tracker = NaiveTracker(naive.model, BITS)  # type: ignore[assignment]
    return {
        "plain": untracked(session("none")),
        "regularizer + tracker": session("oscillation"),
        "naive regularizer + tracker": naive,
        "ste": untracked(session("ste")),
    }


def case(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network."""
    clock = Clock()
    rounds, goals = CASES[name]
    sessions = variants(models(tiny)[name], device, 8 if tiny else 128)
    loops: dict[str, Callable[[], object]] = {variant: Loop(session) for variant, session in sessions.items()}
    # Many short steps in a row keep a GPU busy; one at a time would measure launches.
    repeat = 1 if device == "cpu" else 10
    times = in_turn(loops, 2 if tiny else rounds, warmup=1 if tiny else 2, device=device, repeat=repeat)
    seconds = clock.lap() / (len(sessions) - 1)
    rows = []
    for variant in list(sessions)[1:]:
        found = compared(times, variant, "plain")
        measured = found.pop("ratio")
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
