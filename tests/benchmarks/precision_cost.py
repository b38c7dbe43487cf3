"""fp32 against bf16: a plain float training step in both, and which of the two `train.precision: auto` takes.

    python tests/benchmarks/precision_cost.py [--tiny]

A row says how many times the fp32 step takes of the bf16 step. Where `auto` is bf16 that should be more than 1; where
it is fp32 it is reported: the rule (harness/training/precision.py) must not take bf16 where it is slower, and may leave
out what would gain a little. Random images of CIFAR-10's and the digits' shapes, no augmentation, no tracker.
"""

from typing import Any

from bench_common import Loop, compared, configure, in_turn, make_session, models, untracked
from bench_report import Clock, Row, figure

from harness.training.precision import multiplies_bf16
from harness.training.session import Session

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
MLP = {"name": "mlp5", "hidden": [256, 128]}
#: Network, shape of its images, batch, and rounds that are timed.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, int]] = {
    "resnet18": ({"name": "resnet18"}, CIFAR, 128, 2),
    "vit_tiny": ({"name": "vit_tiny"}, CIFAR, 128, 2),
    "mlp 3072-256-128-10, batch 128": (MLP, CIFAR, 128, 60),
    "mlp 3072-256-128-10, batch 512": (MLP, CIFAR, 512, 30),
    "mlp5, batch 16": ({"name": "mlp5"}, CIFAR, 16, 60),
    "resnet18 of width 16": ({"name": "resnet18", "width": 16}, CIFAR, 128, 6),
    "vit_tiny of width 64": ({"name": "vit_tiny", "width": 64, "depth": 4, "heads": 4}, CIFAR, 64, 6),
    "digits, mlp5 of width 64": ({"name": "mlp5", "width": 64}, DIGITS, 64, 100),
    "digits, mlp5 of width 256": ({"name": "mlp5"}, DIGITS, 64, 100),
    "digits, mlp5 of width 1024": ({"name": "mlp5", "width": 1024}, DIGITS, 64, 40),
    "digits, vit_tiny of width 32": (
        {"name": "vit_tiny", "width": 32, "depth": 2, "heads": 2, "patch": 4}, DIGITS, 64, 60
    ),
    "digits, resnet18 of width 16": ({"name": "resnet18", "width": 16}, DIGITS, 64, 20),
    "mobilenetv2 (depthwise)": ({"name": "timm:mobilenetv2_100"}, CIFAR, 64, 3),
}  # fmt: skip


def case(name: str, tiny: bool) -> Row:
    """The row of one network."""
    clock = Clock()
    network, shape, batch, rounds = CASES[name]
    if tiny:
        network, batch, rounds = models(True)["mlp5"], 8, 2

    def session(precision: str) -> Session:
        config = configure(network, batch=batch, augment=False, epochs=1, precision=precision)
        return untracked(make_session(config, train=2 * batch, val=2, shape=shape))

    auto = session("auto").precision
    times = in_turn({precision: Loop(session(precision)) for precision in ("fp32", "bf16")}, rounds, warmup=1)
    found = compared(times, "fp32", "bf16")
    goal = 1.0 if auto == "bf16" else None
    what = f"{name}: fp32 step (auto is {auto})"
    return figure(
        what, "bf16 step", found.pop("ratio"), goal=goal, compare=">=", seconds=clock.lap(), auto=auto, **found
    )


def measure(tiny: bool = False) -> list[Row]:
    """Rows of all networks; none where the CPU has no instructions for bf16, and bf16 takes minutes."""
    return [case(name, tiny) for name in CASES] if multiplies_bf16() else []


if __name__ == "__main__":
    from bench import run_alone

    run_alone("precision_cost")
