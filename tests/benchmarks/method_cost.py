"""What each method costs: the time of a training step over that of a plain float step.

    python tests/benchmarks/method_cost.py [--device cuda] [--tiny]

Every method in harness/methods at its defaults and target bit 3, on each network that it fits, in the last epoch of a
training, when all that a method switches on in stages is on. No trackers. `python -m harness.methods --cost FILE` shows
these rows (bench.py --only method_cost --json FILE) in the list of methods.
"""

from collections.abc import Callable
from typing import Any

from bench_common import Loop, compared, configure, in_turn, make_session, settings, untracked
from bench_report import Clock, Row, figure

from harness.core import registry
from harness.core.errors import UserError
from harness.training.session import Session

#: StrictConfig and rounds: small enough that all methods take turns within minutes on a CPU.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "mlp5": ({"name": "mlp5"}, 30),
    "resnet18, width 16": ({"name": "resnet18", "width": 16}, 6),
    "vit_tiny, width 64, depth 4": ({"name": "vit_tiny", "width": 64, "depth": 4, "heads": 2}, 6),
}
TINY: dict[str, tuple[dict[str, Any], int]] = {
    "mlp5": ({"name": "mlp5", "width": 16}, 2),
    "vit_tiny": ({"name": "vit_tiny", "width": 16, "depth": 2, "heads": 2}, 2),
}
PLAIN = "none"


def session_of(method: str, model: dict[str, Any], device: str, batch: int) -> Session | None:
    """A method's session in its last epoch; None where the network lacks what the method requires."""
    try:
        session = untracked(make_session(configure(model, method, batch, augment=False, device=device)))
    except UserError:
        return None
    session.progress.epoch = session.config.train.epochs - 1
    return session


def case(network: str, model: dict[str, Any], rounds: int, device: str, batch: int) -> list[Row]:
    """The rows of one network."""
    clock = Clock()
    found = {method: session_of(method, model, device, batch) for method in registry.names("method")}
    sessions = {method: session for method, session in found.items() if session is not None}
    loops: dict[str, Callable[[], object]] = {method: Loop(session) for method, session in sessions.items()}
    # Many short steps in a row keep a GPU busy; one at a time would measure launches.
    times = in_turn(loops, rounds, warmup=1, device=device, repeat=1 if device == "cpu" else 10)
    seconds = clock.lap() / max(1, len(sessions) - 1)
    rows = []
    for method in sessions.keys() - {PLAIN}:
        ratios = compared(times, method, PLAIN)
        detail = {**ratios, **settings(sessions[method]), "method": method, "network": network}
        rows.append(
            figure(f"{method}, a step of {network}", "plain float step", detail.pop("ratio"), seconds=seconds, **detail)
        )
    return sorted(rows, key=lambda row: row["what"])


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """Rows of all networks."""
    rows = []
    for network, (model, rounds) in (TINY if tiny else NETWORKS).items():
        rows += case(network, model, rounds, device, 8 if tiny else 128)
    return rows


if __name__ == "__main__":
    from bench import run_alone

    run_alone("method_cost")
