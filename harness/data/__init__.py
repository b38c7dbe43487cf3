"""Data sets: one file each, found by scanning this folder; their tensors live on the training device.

A data-set file defines `Config(DataConfig)`, `check(config)` (file system only, no torch, no decoding),
`read(config) -> Raw`, and `shape(config)`, so that networks can be tried before it is read. One of another task defines
`Config(TaskDataConfig)` with its `task`, and `load(config, seed, device) -> TaskData` in place of `read`. torch is
imported by `shape`, `prepare` and `load_dataset`, not before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.core import outside, registry
from harness.core.errors import UserError
from harness.core.seeding import sub_seed
from harness.data._config import Augment, DataConfig, TaskDataConfig
from harness.data._source import none_held_out

if TYPE_CHECKING:
    import torch

    from harness.data._samples import TaskData
    from harness.data.base import Dataset, Raw, Split, order

__all__ = [
    "Augment",
    "DataConfig",
    "Dataset",
    "Raw",
    "Split",
    "check",
    "find",
    "load_dataset",
    "order",
    "prepare",
    "shape",
]


def __getattr__(name: str) -> Any:
    if name in ("Dataset", "Raw", "Split", "order"):
        return getattr(import_module("harness.data.base"), name)
    raise AttributeError(f"module 'harness.data' has no attribute {name!r}")


def find(name: str) -> Any:
    """What a data set's file defines, as said above. Raises UserError for an unknown name."""
    found = registry.check("data set", name)
    if outside.is_name(found):
        from harness.data._outside import data_set

        return data_set(found)
    return registry.load("data set", found)


def check(config: TaskDataConfig) -> None:
    """Refuse what the file system already shows to be wrong: cheap, without torch, nothing is decoded.

    Raises UserError: missing root or folders, empty class folders, classes that differ between splits.
    """
    find(config.name).check(config)


def shape(config: TaskDataConfig) -> tuple[tuple[int, ...], int]:
    """(C, H, W) of the images and the number of classes, from one image at most. Nothing is fetched.

    Of other tasks: the data's `input_shape` and `outputs`.

    Raises UserError where the files are not there, or do not tell.
    """
    module = find(config.name)
    if not hasattr(module, "shape"):
        raise UserError(f"data set {config.name!r} does not tell its shape without reading all of it")
    found: tuple[tuple[int, ...], int] = module.shape(config)
    return found


def prepare(config: TaskDataConfig) -> "Raw | TaskData":
    """Everything a data set holds, read and cached for the next time, on the CPU: `Raw`, if it is images of classes.

    Raises UserError: all that `check` raises, a damaged file, unequal image sizes, a failed download, labels outside
    the classes, and settings that do not fit the data.
    """
    module = find(config.name)
    if hasattr(module, "load"):
        found: TaskData = module.load(config, 0, "cpu")
        return found
    return _read(config, module)


def _read(config: Any, module: Any) -> "Raw":
    raw: Raw = module.read(config)
    raw.check_labels(config.name)
    if raw.val is None and not len(_held_out(raw, config, seed=0)[0]):
        raise none_held_out(config.val_fraction, len(raw.train))
    side = config.evaluation_crop or min(raw.train.images.shape[2:])
    if config.augment.crop_padding >= side:
        raise UserError(f"data.augment.crop_padding: {config.augment.crop_padding} must be below the image side {side}")
    return raw


def load_dataset(config: TaskDataConfig, seed: int, device: "torch.device | str") -> "TaskData":
    """The data set of a run, on `device`. Raises UserError like `prepare`."""
    module = find(config.name)
    if hasattr(module, "load"):
        found: TaskData = module.load(config, seed, device)
        return found
    return _of_classes(config, _read(config, module), seed, device)


def _of_classes(config: Any, raw: "Raw", seed: int, device: "torch.device | str") -> "Dataset":
    """Images of classes. Where the files give no val split, `seed` draws it from train."""
    import torch

    from harness.data._residency import place
    from harness.data._split import carve, channel_statistics
    from harness.data.base import Dataset, Split

    train, val, test = raw.train, raw.val, raw.test
    where = place(config, raw, torch.device(device))
    if raw.mapped or where != "device":
        train, val, test = train.in_place(), val and val.in_place(), test.in_place()
    if val is None:
        held, rest = _held_out(raw, config, seed)
        train, val = train.take(rest), train.take(held)
    dropped = len(train) - max(1, round(len(train) * config.train_fraction))
    if dropped:
        train = train.take(carve(train.labels, dropped, sub_seed(seed, "split", "train_fraction"))[1])
    move = Split.onto if where == "device" else Split.to
    train = move(train, device)
    if config.normalize == "standardize":
        mean, std = channel_statistics(train, raw.max_value, raw.digest if where == "disk" else None)
    else:
        channels = train.images.shape[1]
        mean, std = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return Dataset(
        train=train,
        val=move(val, device),
        test=move(test, device),
        class_names=raw.class_names,
        max_value=raw.max_value,
        mean=mean,
        std=std,
        augment=config.augment,
        digest=raw.digest,
        crop=config.evaluation_crop,
    )


def _held_out(raw: "Raw", config: DataConfig, seed: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Indices into the training images: those that validate, and those left to train."""
    from harness.data._split import carve

    return carve(raw.train.labels, round(len(raw.train) * config.val_fraction), sub_seed(seed, "split"))
