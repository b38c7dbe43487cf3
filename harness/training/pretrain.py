"""The float network that fine-tuning starts from: a separate run, shared by all runs that start from it.

If a configuration has a `pretrain` section, its network is first trained in float with these settings, with the same
seed and the same split of the same data, so the later run's validation images are held out here too. The methods start
from the weights of this run's best epoch. It never reads the test split.
"""

from collections.abc import Callable
from pathlib import Path

from harness.core.bits import MIN_BITS
from harness.core.config_base import QuantizerConfig
from harness.records.files import read_json
from harness.records.run_directory import RunDirectory
from harness.training.config import RunConfig
from harness.training.sections import MonitorConfig


def parent_of(config: RunConfig) -> RunConfig:
    """The configuration of the float run that a run starts from, without settings that float training does not use."""
    assert config.pretrain is not None
    changed = {
        "phase": "tune",
        "pretrain": None,
        "train": config.pretrain,
        "methods": ({"name": "none"},),
        "target_bit": None,
        "watch_bit": MIN_BITS,
        "also_watch": (),
        "quantizer": QuantizerConfig(),
        "monitor": MonitorConfig(),
        "deploy": config.deploy.model_copy(update={"scale": "recalibrate", "methods": ("rtn",)}),
    }
    return config.model_copy(update=changed)


def starting_weights(
    config: RunConfig, folder: Path, carry_out: Callable[[RunConfig, Path], object], should_stop: Callable[[], bool]
) -> Path | None:
    """The file with the weights that a run starts from; None without `pretrain`. Trained in `folder` if missing.

    carry_out: trains a configuration in a directory and saves its best weights, unless it should stop. One process
    trains; others that need the same network wait. Raises Stopped if it should stop while waiting, and all exceptions
    of training.
    """
    if config.pretrain is None:
        return None
    parent = parent_of(config)
    files = RunDirectory(folder / parent.run_id())
    files.path.mkdir(parents=True, exist_ok=True)
    with files.locked(should_stop):
        if not files.best.exists() or not files.record.exists():
            files.record.unlink(missing_ok=True)  # deleted weights are trained again
            print(f"training the float network to start from first: run {parent.run_id()}", flush=True)
            carry_out(parent, files.path)
    return files.best


def describe_pretrained(config: RunConfig, folder: Path) -> dict[str, object]:
    """The entry in a run's record about the network that it started from."""
    if config.pretrain is None:
        return {}
    run_id = parent_of(config).run_id()
    record = read_json(RunDirectory(folder / run_id).record) or {"provenance": {}}
    code = {name: record["provenance"].get(name) for name in ("git", "numerics_version")}
    found = {name: record.get(name) for name in ("best_epoch", "monitor")}
    precision = record.get("resolved", {}).get("precision")
    return {"pretrained": {"run_id": run_id, **found, **code, "precision": precision}}


def drop_half_done(config: RunConfig, folder: Path) -> None:
    """Remove the checkpoint of an unfinished float network, so that other code does not resume from it."""
    if config.pretrain is not None:
        RunDirectory(folder / parent_of(config).run_id()).checkpoint.unlink(missing_ok=True)
