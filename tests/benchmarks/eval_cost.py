"""What deployment points cost: one evaluation of a validation split at several of them over as many float passes.

Five bit-widths (2, 3, 4, 8 and float), and six points with activations, whose ranges are observed first on calibration
batches: a fifth as many images as are evaluated (CIFAR-10: 8 batches of 128, and 5,000 images).

python tests/benchmarks/eval_cost.py [--device cuda] [--tiny]
"""

import statistics
from collections.abc import Callable
from typing import Any

from bench_common import compared, configure, in_turn, make_session, models, settings
from bench_report import Clock, Row, figure

from harness.core.layer_points import AnyPoint
from harness.training.evaluator import evaluate_all
from harness.training.session import Session

#: Validation images of each network, and the rounds that are timed: fewer than CIFAR-10's 5,000 where a pass takes
#: seconds, which counts against the product, as the rounding of the weights is spread over fewer images.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "resnet18, quarter width": ("resnet18", {"width": 16}, 1_250, 2),
    "vit_tiny": ("vit_tiny", {}, 128, 2),
    "mlp5": ("mlp5", {}, 5_000, 10),
}
BITS = (2, 3, 4, 8)
POINTS = ("w2a2", "w3a3", "w4a4", "w4a8", "w8a4", "w8a8")
GOAL, GOAL_WITH_ACTIVATIONS = 1.05, 1.6


def asked(session: Session) -> list[tuple[str, AnyPoint]]:
    """What the product evaluates: at the end of an epoch, and for the record."""
    points = [point for point in session.config.evaluated_points if not point.weights_only] or session.evaluator.points
    return [("rtn", point) for point in points]


def at_all_points(session: Session) -> None:
    """As the product evaluates."""
    session.evaluator.rows(session.model, session.config.phase, "val", asked(session))


def float_passes(session: Session, count: int) -> None:
    """The plain evaluation, once for each point, of the network as it is."""
    session.model.eval()
    size, precision = session.config.runtime.eval_batch_size, session.evaluator.precision
    for _ in range(count):
        evaluate_all([session.model], session.task, session.dataset, session.dataset.val, size, precision)
    session.model.train()


def case(name: str, points: tuple[int | str, ...], device: str, tiny: bool) -> list[Row]:
    """The row of one network, and its bound: float passes, and making the networks to be evaluated, ranges observed."""
    clock = Clock()
    model, options, images, rounds = CASES[name]
    activations = points is POINTS
    images = 32 if tiny else images // 2 if activations else images  # quantizers take several times as long
    config = configure(models(tiny)[model] | ({} if tiny else options), bits=points, device=device)
    session = make_session(config, train=images // 5 if activations else 256, val=images)
    count, what = (6, "six points with activations") if activations else (5, "five bit-widths")
    works: dict[str, Callable[[], object]] = {
        "all": lambda: at_all_points(session),
        "float": lambda: float_passes(session, count),
    }
    works["deploy"] = lambda: session.evaluator.deployments(session.model, asked(session))
    times = in_turn(works, 1 if tiny else rounds, warmup=1, device=device)
    found = compared(times, "all", "float")
    measured = found.pop("ratio")
    details = {"images": len(session.dataset.val), **found, **settings(session)}
    passes, goal = ("six", GOAL_WITH_ACTIVATIONS) if activations else ("five", GOAL)
    what, reference = f"{what} over a validation split, {name}", f"{passes} float passes"
    rows = [figure(what, reference, measured, goal=goal, seconds=clock.lap(), **details)]
    deploy, float_s = min(times["deploy"]), statistics.median(times["float"])
    bound = (float_s + deploy) / float_s
    rows.append(figure(f"bound of {what}", reference, bound, seconds=clock.lap(), ms_of_deployment=1e3 * deploy))
    return rows


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    return [row for points in (BITS, POINTS) for name in CASES for row in case(name, points, device, tiny)]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("eval_cost")
