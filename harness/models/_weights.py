"""Initial weights from files and from the network, and errors that say what does not fit."""

import pickle
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from harness.core.errors import UserError
from harness.records.files import no_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Marks of keys that a slot adds to a layer, or that belong to a norm's copies for further bit-widths: no part of a
#: float model.
SLOT_KEYS = ("_quantizer.", "weight_transform.", "other_widths.")
#: What wrappers (torch.compile, DistributedDataParallel) put before every key.
_WRAPPERS = ("_orig_mod.", "module.")
_SHOWN = 5
#: Seconds between two bytes of a download.
_READ_TIMEOUT_S = 30.0
_NETWORK_PACKAGES = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3")


def load_checkpoint(model: "nn.Module", path: Path, new_head: bool = False) -> None:
    """Load a model's weights, in place, from .safetensors, .pt, .pth or .pth.tar (never unpickling code).

    The file holds a state dict, or one under "state_dict" or "model". Keys of quantizer slots that the model
    does not have are passed over, so the weights of a quantized run load into the float model.
    new_head: the model's own classifier stays, whatever the file has for it.
    Raises UserError when the file cannot be read, or naming the keys that are missing, unknown or mis-shaped.
    """
    state, expected = read_state_dict(path), model.state_dict()
    surplus = {key for key in state if key not in expected and any(mark in key for mark in SLOT_KEYS)}
    state = {key: value for key, value in state.items() if key not in surplus}
    head = _head_keys(model)
    if new_head:
        state |= {key: expected[key] for key in head}
    misshapen = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    problems = [
        _listing("missing", [key for key in expected if key not in state]),
        _listing("unknown", [key for key in state if key not in expected]),
        _listing(
            "mis-shaped",
            [f"{key} {tuple(state[key].shape)}, the model has {tuple(expected[key].shape)}" for key in misshapen],
        ),
    ]
    if any(problems):
        hint = "; head: new initialises the classifier anew" if misshapen and set(misshapen) <= head else ""
        raise UserError(f"checkpoint {path} does not fit the model: {'; '.join(filter(None, problems))}{hint}")
    model.load_state_dict(state)


def _head_keys(model: "nn.Module") -> set[str]:
    """The keys of the classifier: what timm says it is, or else the last layer."""
    layers = [
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or layers[-1:]
    heads = (named,) if isinstance(named, str) else named
    return {key for key in model.state_dict() if key.startswith(tuple(f"{head}." for head in heads))}


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
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} cannot be read: it {no_safetensors(path, error)}") from error
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {_reason(error)}") from error
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


def _reason(error: Exception) -> str:
    """What is wrong with a file, without torch's advice on how to run the code in it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := re.search(r"GLOBAL (\S+)", text):
        return (
            f"it holds {found[1]}, and only tensors, numbers, text, lists and dictionaries are read; "
            "keep the state dict alone: torch.save(model.state_dict(), FILE)"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive; keep its state dict: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of torch.save"
    if isinstance(error, EOFError):
        return "it is empty or cut"
    return (text.splitlines() or [type(error).__name__])[0].partition(". ")[0]


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
