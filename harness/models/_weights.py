"""Initial weights from files and from the network, and errors that say what does not fit."""

import pickle
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from safetensors import SafetensorError

from harness.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Marks of keys that a slot adds to a layer, or that belong to a norm's copies for further bit-widths: no part of a
#: float model.
SLOT_KEYS = ("_quantizer.", "weight_transform.", "other_widths.")
#: What wrappers (torch.compile, DistributedDataParallel) put before every key.
_WRAPPERS = ("_orig_mod.", "module.")
_SHOWN = 5
#: Seconds: to reach the hub at all, and between two bytes of a download.
_PROBE_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 30.0
_NETWORK_PACKAGES = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3")


def load_checkpoint(model: "nn.Module", path: Path) -> None:
    """Load a model's weights, in place, from .safetensors, .pt or .pth (never unpickling code).

    The file holds a state dict, or one under "state_dict" or "model". Keys of quantizer slots that the model
    does not have are passed over, so the weights of a quantized run load into the float model.
    Raises UserError when the file cannot be read, or naming the keys that are missing, unknown or mis-shaped.
    """
    state, expected = read_state_dict(path), model.state_dict()
    surplus = {key for key in state if key not in expected and any(mark in key for mark in SLOT_KEYS)}
    state = {key: value for key, value in state.items() if key not in surplus}
    shared = [key for key in expected if key in state]
    problems = [
        _listing("missing", [key for key in expected if key not in state]),
        _listing("unknown", [key for key in state if key not in expected]),
        _listing(
            "mis-shaped",
            [
                f"{key} {tuple(state[key].shape)}, the model has {tuple(expected[key].shape)}"
                for key in shared
                if state[key].shape != expected[key].shape
            ],
        ),
    ]
    if any(problems):
        raise UserError(f"checkpoint {path} does not fit the model: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state)


def _listing(kind: str, entries: list[str]) -> str:
    """`"3 missing (a, b, c)"`, the first few of them; nothing for none."""
    more = f", and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:_SHOWN])}{more})" if entries else ""


def read_state_dict(path: Path) -> "dict[str, Tensor]":
    """A file's tensors by key, on the CPU. Raises UserError when it cannot be read or holds no state dict."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {path} cannot be read: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"checkpoint {path} holds no state dict (parameter names to tensors)")
    state = dict(content)
    for prefix in _WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def drop_head(state: "dict[str, Tensor]", model: "nn.Module", head: Iterable[str]) -> "dict[str, Tensor]":
    """Published weights with the classifier's replaced by the model's own where the classes differ."""
    own = model.state_dict()
    return {**state, **{key: own[key] for key in head if own[key].shape != state[key].shape}}


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Around a download of published weights: bounds how long it may hang; failures become a UserError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_READ_TIMEOUT_S)
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | HTTPException) and package not in _NETWORK_PACKAGES:
            raise
        raise UserError(
            f"init pretrained: the weights of {name} could not be downloaded ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}); put a checkpoint at init: checkpoint:<path>"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def hub_offline_if_unreachable() -> Iterator[None]:
    """Has the Hugging Face hub use its cache alone when it does not answer one short question.

    Left to itself it retries for 47 s without a network (measured, huggingface_hub 2.4).
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Whether a server answers at all, through the proxies of the environment."""
    try:
        urlopen(Request(url, method="HEAD"), timeout=_PROBE_TIMEOUT_S).close()
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False
    return True
