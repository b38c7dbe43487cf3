"""Checkpoints: everything that a run needs to resume exactly. Loaded with weights_only=True."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization.layers import weight_layers
from harness.records.files import written_aside
from harness.training.optimizer import match_states
from harness.training.session import Session


def save(path: Path, session: Session) -> None:
    """Write a session's state to `path`, atomically."""
    rng = {"cpu": torch.get_rng_state()}
    if session.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(session.device)
    state = {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "methods": [method.state_dict() for method in session.methods],
        "trackers": {str(bits): tracker.state_dict() for bits, tracker in session.trackers.items()},
        "progress": session.progress.state_dict(),
        "precision": session.precision,
        "compiled": session.compiled,
        "rng": rng,
        "data": session.dataset.digest,
    }
    # Serialized in memory first: on a full disk torch's own file writer aborts the process.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with written_aside(path) as aside:
        aside.write_bytes(buffer.getbuffer())


def restore(path: Path, session: Session) -> bool:
    """Load the state in `path` into a new session; False if there is no readable file.

    Raises UserError where the run began with other data.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=session.device, weights_only=True)
    except FileNotFoundError:
        return False
    except Exception as error:  # torch raises many types for a damaged file; the run starts over
        print(f"{path}: unreadable ({type(error).__name__}: {error}); starting over", flush=True)
        return False
    if "trackers" not in state:
        print(f"{path}: written by an earlier version, which kept one tracker; starting over", flush=True)
        return False
    _refuse_other_data(path, state.get("data"), session.dataset.digest)
    try:
        session.optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:  # raised before anything changes
        print(f"{path}: written by an earlier version ({error}); starting over", flush=True)
        return False
    session.model.load_state_dict(state["model"])
    match_states(session.optimizer)
    for method, method_state in zip(session.methods, state["methods"], strict=True):
        method.load_state_dict(method_state)
    for bits, tracker in session.trackers.items():
        tracker.load_state_dict(state["trackers"][str(bits)])
    session.progress.load_state_dict(state["progress"])
    session.precision = state["precision"]
    if state["compiled"] != session.compiled:
        was = f"compiled: {state['compiled']}"
        print(f"{path}: goes on with compiled: {session.compiled}, not {was}; last bits may differ", flush=True)
    torch.set_rng_state(state["rng"]["cpu"].cpu())
    if session.device.type == "cuda":
        torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), session.device)
    return True


def _refuse_other_data(path: Path, was: str | None, digest: str) -> None:
    """was: None in checkpoints of earlier versions."""
    if was not in (None, digest):
        raise UserError(
            f"{path}: the run began with data of digest {was}, and the data here have {digest}; go on with the data of "
            "then (data.root), or give the run a directory of its own"
        )


#: The key of `about_weights` in a file's metadata. One key, since safetensors writes several in a random order.
ABOUT = "harness"


def about_weights(session: Session) -> dict[str, Any]:
    """What the weights of a session are and how they were made; plain JSON values."""
    config = session.config
    return {
        "content": "latent weights and quantizer state, not rounded: harness.round_to_nearest deploys them",
        "methods": config.methods,
        "target_bit": config.target_bit,
        "layers": list(weight_layers(session.model, config.exclude)),
        "exclude": config.exclude,
        "quantizer": config.quantizer.model_dump(mode="json"),
        "scale": config.deploy.scale,
    }


def save_weights(path: Path, state: dict[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Write a model's state dict as safetensors, atomically; `about` goes into its metadata as JSON."""
    metadata = None if about is None else {ABOUT: json.dumps(about, sort_keys=True)}
    with written_aside(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, aside, metadata)
