"""The plain content of a sweep file, with what the command line replaces."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.core import yaml_file
from harness.core.dotted import set_dotted
from harness.core.errors import UserError
from harness.training.config import RunConfig

#: Settings of a run that a sweep decides elsewhere: tune.seed, final.seeds, cells.methods.
NOT_SET = ("seed", "phase", "methods")


def content(path: Path, replaced: Iterable[str] = ()) -> dict[str, Any]:
    """What a file holds, legal or not, with `key=value` overrides. Raises UserError for what is no YAML."""
    raw = yaml_file.read(path)
    for override in replaced:
        apply_override(raw, override)
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a dotted key (`tune.trials=4`, `cells.0.search.x.low=1`) of a sweep's plain content, in place.

    A run setting (`data.root=PATH`) is short for that of the sweep's `base`. Raises UserError for a malformed
    override; whether the key exists is checked with the whole file.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r}: write key=value, for example tune.trials=4")
    in_base = key.partition(".")[0] in RunConfig.model_fields
    try:
        set_dotted(raw, f"base.{key}" if in_base else key, yaml_file.parse(text))
    except UserError as error:
        raise UserError(f"--set {override!r}: {error}") from None
