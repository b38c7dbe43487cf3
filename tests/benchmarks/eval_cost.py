"""What five bit-widths cost: one evaluation of a validation split at 2, 3, 4, 8 bits and float over five float passes.

python tests/benchmarks/eval_cost.py [--device cuda] [--tiny]
"""

from typing import Any

from bench_common import compared, configure, in_turn, make_session, models, settings
from bench_report import Clock, Row, figure

from harness.training.evaluator import evaluate_all
from harness.training.session import Session

#: Validation images of each network, and the rounds that are timed: fewer than CIFAR-10's 5,000 where a pass takes
#: seconds, which counts against the product, as the rounding of the weights is spread over fewer images.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "resnet18, quarter width": ("resnet18", {"width": 16}, 1_250, 2),
    "vit_tiny": ("vit_tiny", {}, 256, 2),
    "mlp5": ("mlp5", {}, 5_000, 10),
}
BITS = (2, 3, 4, 8)
GOAL = 1.05


def five_bit_widths(session: Session) -> None:
    """As the product validates at the end of an epoch."""
    session.evaluator.rows(session.model, session.config.phase, "val")


def five_float_passes(session: Session) -> None:
    """The plain evaluation, once for each bit-width, of the network as it is."""
    session.model.eval()
    size, precision = session.config.runtime.eval_batch_size, session.evaluator.precision
    for _ in (*BITS, "float"):
        evaluate_all([session.model], session.dataset, session.dataset.val, size, precision)
    session.model.train()


def case(name: str, device: str, tiny: bool) -> Row:
    """The row of one network."""
    clock = Clock()
    model, options, images, rounds = CASES[name]
    config = configure(models(tiny)[model] | ({} if tiny else options), bits=BITS, device=device)
    session = make_session(config, train=256, val=32 if tiny else images)
    works = {"all": lambda: five_bit_widths(session), "float": lambda: five_float_passes(session)}
    times = in_turn(works, 1 if tiny else rounds, warmup=1, device=device)
    found = compared(times, "all", "float")
    measured = found.pop("ratio")
    what = f"five bit-widths over a validation split, {name}"
    details = {"images": len(session.dataset.val), **found, **settings(session)}
    return figure(what, "five float passes", measured, goal=GOAL, seconds=clock.lap(), **details)


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [case(name, device, tiny) for name in CASES]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("eval_cost")
