"""The mirror of a run on Weights & Biases. The run directory is the truth; nothing here can stop a run.

Without an account everything goes to offline files in the run directory, for `wandb sync` later.
"""

import os
import sys
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from harness import schema
from harness.config import RunConfig


def wandb_mode(wanted: str) -> str:
    """What "auto" comes to: "off" without the package, "offline" without a key; never a prompt."""
    if wanted == "off":
        return "off"
    try:
        import wandb  # noqa: F401
    except ImportError:
        return "off"
    if wanted != "auto":
        return wanted
    chosen = os.environ.get("WANDB_MODE", "")
    if chosen in ("online", "offline"):
        return chosen
    if chosen in ("disabled", "dryrun"):
        return "off" if chosen == "disabled" else "offline"
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def explain_mode(mode: str) -> str:
    """One sentence for the user about where W&B's copy of the runs goes."""
    return {
        "online": "W&B: runs are mirrored online",
        "offline": "W&B: no key found, so runs are mirrored offline (later: wandb sync DIR/wandb/offline-run-*)",
        "off": "W&B: off (results are in the run directories all the same)",
    }[mode]


def group_of(config: RunConfig) -> str:
    """`mlp5/oscillation/w2`: the W&B group under which the seeds of a cell collapse."""
    target = f"w{config.target_bit}" if config.target_bit else schema.FLOAT
    return "/".join((config.model["name"], "+".join(entry["name"] for entry in config.methods), target))


class Mirror:
    """One run on W&B; every failure of W&B is said once and then ignored."""

    def __init__(self, config: RunConfig, run_id: str, directory: Path, tags: tuple[str, ...] = ()) -> None:
        self._run: Any = None
        mode = wandb_mode(config.runtime.wandb)
        if mode == "off":
            return
        self._try("start", lambda: self._start(config, run_id, directory, tags, mode))

    def _start(self, config: RunConfig, run_id: str, directory: Path, tags: tuple[str, ...], mode: str) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
        self._run = wandb.init(
            project=config.runtime.wandb_project,
            id=run_id,
            resume="allow",
            name=f"{group_of(config)}/s{config.seed}",
            group=group_of(config),
            job_type=config.phase,
            tags=[*tags, config.phase],
            config=config.model_dump(mode="json"),
            dir=directory,
            mode=mode,  # type: ignore[arg-type]
            settings=quiet,
        )
        self._run.define_metric(schema.EPOCH)
        for names, summary in (("val/*", "max"), ("osc/*", "last"), (schema.LAYER_PREFIX + "*", "last")):
            self._run.define_metric(names, step_metric=schema.EPOCH, summary=summary)
        self._run.define_metric("train/*", step_metric=schema.EPOCH)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Send the metrics of an epoch."""
        if self._run is not None:
            self._try("log", lambda: self._run.log(dict(metrics)))

    def finish(self, summary: Mapping[str, Any], failed: bool = False) -> None:
        """Send final figures (`test/acc_w2`, `best_epoch`) and close the run."""
        run = self._run  # closed also when its summary failed: what was logged before must reach the disk
        if run is not None:
            self._try("summary", lambda: run.summary.update(dict(summary)))
            self._try("finish", lambda: run.finish(exit_code=int(failed)))

    def _try(self, what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever a service does, the run goes on
            print(
                f"W&B: {what} failed ({type(error).__name__}: {error}); the run goes on without",
                file=sys.stderr,
            )
            self._run = None


def _netrc_has_key() -> bool:
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC")).hosts)
    except (OSError, NetrcParseError):
        return False
