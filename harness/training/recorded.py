"""The session of a finished run, from its record and its kept weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from harness.core.errors import UserError
from harness.training.build import build
from harness.training.config import complete
from harness.training.session import Session


def session_of(record: Mapping[str, Any], weights: Path, device: str | None = None) -> Session:
    """A run's session with the network of its best epoch. device: in place of the run's own.

    Raises UserError for code or data that are not those of the record.
    """
    raw = dict(record["config"])
    if device:
        raw["runtime"] = {**raw["runtime"], "device": device}
    config = complete(raw)
    if config.run_id() != record["run_id"]:
        raise UserError(f"its configuration now names another run ({config.run_id()}): this code is not what made it")
    # Initial weights are not needed: what methods prepared from them is in the state that is loaded below.
    session = build(config)
    if session.dataset.digest != record["provenance"]["data_digest"]:
        raise UserError("the data are not those that it was trained on (their digests differ)")
    session.model.load_state_dict(load_file(weights))
    return session
