"""Why a resumed run differs: what a method keeps that its `state_dict` does not hold, by comparing its attributes."""

import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.conformance.common import CheckFailed, require_same
from harness.core.errors import Stopped
from harness.training import checkpoint
from harness.training.build import build
from harness.training.config import RunConfig
from harness.training.loop import train
from harness.training.session import Session

#: Steps before the stop: within the second epoch of two of three steps each.
_STEPS = 4
#: How far it is looked into objects that an attribute holds.
_DEPTH = 4
_HOOKS = "return it from `state_dict()` of the method and set it again in `load_state_dict(state)`"
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)


@contextmanager
def explained(config: RunConfig, folder: Path) -> Iterator[None]:
    """Add the likely cause to the CheckFailed of a resumed run that differs. folder: for a checkpoint."""
    try:
        yield
    except CheckFailed as error:
        raise CheckFailed(f"{error}. {_cause(config, folder)}") from None


def _cause(config: RunConfig, folder: Path) -> str:
    try:
        with torch.random.fork_rng(devices=[]):
            found = _unsaved(config, folder / "unsaved.pt")
    except Exception:  # whatever a method's own code raises, the check has failed for the other reason
        found = []
    if found:
        return (
            f"Likely cause: training changed {', '.join(found)}, and after a resume it is not what it was: {_HOOKS}. "
            "What each step computes anew needs neither"
        )
    return (
        "Likely cause: the method keeps something that training changes (an attribute, a tensor, a counter) and that "
        f"no checkpoint holds: {_HOOKS}; random numbers of another generator than torch's own are such a thing too"
    )


def _unsaved(config: RunConfig, path: Path) -> list[str]:
    """Attributes of methods, else of modules, that a resume does not bring back."""
    session, resumed = build(config), build(config)
    left = itertools.chain([False] * _STEPS, itertools.repeat(True))
    with suppress(Stopped):
        train(session, lambda metrics: None, partial(next, left))
    checkpoint.save(path, session)
    checkpoint.restore(path, resumed)
    pairs = zip(session.methods, resumed.methods, strict=True)
    found = [f"`self.{name}`" for one, other in pairs for name in _differing(_kept(one), _kept(other))]
    return found or [f"`{name}` of the network" for name in _differing(_of_modules(session), _of_modules(resumed))]


def _kept(method: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(method).items() if name not in ("config", "context")}


def _of_modules(session: Session) -> dict[str, Any]:
    """What modules hold beside their state dict: buffers that are not persistent, and public attributes."""
    saved, found = session.model.state_dict(), dict[str, Any]()
    for place, module in session.model.named_modules():
        prefix = f"{place}." if place else ""
        own = {name: value for name, value in vars(module).items() if name != "training" and not name.startswith("_")}
        own |= {name: value for name, value in module._buffers.items() if prefix + name not in saved}
        found |= {prefix + name: value for name, value in own.items()}
    return found


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*one, *other}) if not _same(one.get(name), other.get(name))]


def _same(one: Any, other: Any) -> bool:
    try:
        require_same(_plain(one), _plain(other))
    except CheckFailed:
        return False
    return True


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """A value as containers, tensors and texts that can be compared; None for what cannot be, such as a function."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float | str | bytes | itertools.count):
        return repr(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if depth == 0 or value is None or isinstance(value, _CODE):
        return None
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(each, depth - 1) for each in value]
    if hasattr(value, "tolist"):  # of numpy
        return repr(value.tolist())
    return _plain(vars(value), depth - 1) if hasattr(value, "__dict__") else None
