"""What QAT of weights and activations costs: the time of an `lsq` step at w4a4 over that of a plain float step.

    python tests/benchmarks/activation_cost.py [--device cuda] [--tiny]

Beside it, for the MLP, `lsq` at 4 bits, weights alone: what is between the two is the quantizers of activations. The
other networks are compiled, as in long runs, which takes most of the time here, so that they have one row each, and the
ViT has 4 of its 12 blocks, which are all alike.
"""

from typing import Any

from bench_common import Loop, compared, configure, in_turn, make_session, models, settings, untracked
from bench_report import Clock, Row, figure

from harness.training.config import complete
from harness.training.session import Session

#: Rounds that are timed, and the goal of w4a4; None: reported.
#: Network: its options, the rounds that are timed, and the goal.
CASES: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "resnet18": ({}, 3, 1.35),
    "vit_tiny": ({"depth": 4}, 3, 1.35),
    "mlp5": ({}, 60, None),
}
PLAIN = "plain float step"


def session_of(method: str, target: Any, model: dict[str, Any], device: str, batch: int) -> Session:
    """A session without augmentation and trackers."""
    raw = configure(model, method, batch, augment=False, device=device).model_dump(mode="json")
    changed = {**raw, "target_bit": target, "watch_bit": 4, "activations": {"calibration_batches": 1}}
    return untracked(make_session(complete(changed)))


def case(name: str, device: str, tiny: bool) -> list[Row]:
    """The rows of one network."""
    clock = Clock()
    options, rounds, goal = CASES[name]
    model, batch = models(tiny)[name] | ({} if tiny else options), 8 if tiny else 128
    wanted: dict[str, tuple[str, Any]] = {PLAIN: ("none", None), "lsq, w4a4": ("lsq", "w4a4")}
    if goal is None:
        wanted["lsq, 4 bits"] = ("lsq", 4)
    sessions = {what: session_of(*each, model, device, batch) for what, each in wanted.items()}
    loops = {what: Loop(session) for what, session in sessions.items()}
    repeat = 1 if device == "cpu" else 10  # many short steps in a row keep a GPU busy
    times = in_turn(loops, 1 if tiny else rounds, warmup=1, device=device, repeat=repeat)
    seconds = clock.lap() / (len(sessions) - 1)
    label = ", ".join([name, *(f"{key} {value}" for key, value in options.items())])
    rows = []
    for what in list(wanted)[1:]:
        found = compared(times, what, PLAIN)
        details = {**found, **settings(sessions[what])}
        own = goal if what == "lsq, w4a4" else None
        rows.append(
            figure(f"{what}, a step of {label}", PLAIN, details.pop("ratio"), goal=own, seconds=seconds, **details)
        )
    return rows


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [row for name in CASES for row in case(name, device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("activation_cost")
