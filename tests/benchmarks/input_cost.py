"""The share of the input pipeline in a step of ResNet-18 and of the notebook's MLP, and the memory of the tracker.

python tests/benchmarks/input_cost.py [--device cuda] [--tiny]
"""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from bench_common import TRAIN_IMAGES, Loop, compared, configure, in_turn, make_session, models, settings
from bench_report import Clock, Row, figure
from torch import Tensor, nn

from harness.training.session import Session

#: The network of the notebook released with arXiv 2502.00490: its steps are the shortest.
MLP = {"name": "mlp5", "hidden": [256, 128]}


def input_share(session: Session, network: str, goal: float, rounds: int, device: str) -> Row:
    """Drawing, cropping, mirroring and normalising a batch, over the whole step that does it too."""
    clock = Clock()
    loop = Loop(session)
    generator = torch.Generator(session.device)
    works: dict[str, Callable[[], object]] = {
        "input": lambda: session.dataset.train_batch(next(loop.batches), generator.manual_seed(0)),
        "step": loop,
    }
    times = in_turn(works, rounds, warmup=3, device=device, repeat=1 if device == "cpu" else 10)
    found = compared(times, "input", "step")
    share = 100 * found.pop("ratio")
    what = f"input pipeline (draw, crop, flip, normalise), {network}"
    details = {**found, **settings(session)}
    return figure(what, "the step", share, goal=goal, unit="%", seconds=clock.lap(), **details)


def tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object through attributes and containers."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | ModuleType | None):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        inner: list[Any] = []
    elif isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    else:
        inner = list(vars(value).values()) if hasattr(value, "__dict__") else []
        inner += [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if name != "__dict__"]
    for part in inner:
        yield from tensors(part, seen)


def storage_bytes(found: Iterator[Tensor], without: Mapping[int, int]) -> dict[int, int]:
    """Bytes of each storage by its address, shared ones once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    return {address: size for address, size in storages.items() if address not in without}


def tracker_memory(session: Session) -> Row:
    """Everything the tracker holds besides the model, scratch space that it keeps included."""
    clock = Clock()
    layers = [layer.weight for layer in session.model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    watched, weights = (
        sum(weight.numel() * weight.element_size() for weight in found)
        for found in (layers, session.model.parameters())
    )
    own = [*session.model.parameters(), *session.model.buffers()]
    own += [parameter.grad for parameter in session.model.parameters() if parameter.grad is not None]
    held = sum(storage_bytes(tensors(session.tracker, set()), storage_bytes(iter(own), {})).values())
    state = sum(storage_bytes(tensors(session.tracker.state_dict(), set()), {}).values())
    return figure(
        "tracker memory, resnet18",
        "float weights of the network",
        held / weights,
        goal=1.0,
        seconds=clock.lap(),
        bytes=held,
        bytes_of_its_state=state,
        bytes_of_weights=weights,
        bytes_of_watched_weights=watched,
    )


def measure(device: str = "cpu", tiny: bool = False) -> list[Row]:
    """All rows."""

    def session_of(model: dict[str, Any], method: str) -> Session:
        config = configure(model, method, 8 if tiny else 128, device=device)
        return make_session(config, train=64 if tiny else TRAIN_IMAGES)

    session = session_of(models(tiny)["resnet18"], "oscillation")
    return [
        input_share(session, "resnet18", 3.0, 2 if tiny else 10, device),
        tracker_memory(session),
        input_share(session_of(MLP, "none"), "MLP 3072-256-128-10", 5.0, 2 if tiny else 200, device),
    ]


if __name__ == "__main__":
    from bench import run_alone

    run_alone("input_cost")
