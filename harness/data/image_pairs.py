"""Super-resolution on your own images: folders of large ones, such as DIV2K, Set5 and Set14.

Small images are made by bicubic interpolation, or read from folders that hold them in the same order. Images of a split
may differ in size.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.errors import UserError
from harness.core.seeding import sub_seed
from harness.data._config import EnlargingConfig, refuse_download, root_of
from harness.data._source import Folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from harness.data._enlarging import EnlargingData

LAYOUT = "folders of large images below data.root (data.train, data.test and, optionally, data.val)"
_SPLITS = ("train", "val", "test")


class Config(EnlargingConfig):
    """`root` holds the folders. DIV2K: `train: DIV2K_train_HR`, `test: DIV2K_valid_HR`."""

    name: Literal["image_pairs"] = "image_pairs"
    train: str = Field("train", min_length=1, description="folder of large images to train on")
    val: str | None = Field(None, description="the same for validation; null: part of train, by image")
    test: str = Field("test", min_length=1, description="the same for test")
    train_low: str | None = Field(None, description="folder of the small ones of train; null: made by bicubic")
    val_low: str | None = Field(None, description="the same of val")
    test_low: str | None = Field(None, description="the same of test")
    val_fraction: float = Field(0.1, gt=0, lt=0.5, description="part of train set aside where there is no val")


#: Of each split: names of large and of small images, the latter None where they are to be made.
_Names = dict[str, tuple[list[str], list[str] | None]]


def check(config: Config) -> None:
    """Raises UserError: a folder missing or without images, small and large images of different numbers."""
    _scan(config)


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, h, w) of a crop, by the first image, and the factor of enlargement."""
    from harness.data._images import decode_one

    source, names = _scan(config)
    first = decode_one(source, names["train"][0][0], grey=True)
    return (first.shape[2], config.patch, config.patch), config.scale


def load(config: Config, seed: int, device: "torch.device | str") -> "EnlargingData":
    """All images on a device. Where there is no val, `seed` draws it from the images of train.

    Raises UserError like `check`; damaged images; a grey image among colour ones or the other way round; sizes that do
    not match, or are too small.
    """
    import torch

    from harness.data._enlarging import Crops, EnlargingData, check_sizes, digest_of, gathered

    source, names = _scan(config)
    flat = [name for pair in names.values() for part in pair if part for name in part]
    pairs = _pairs(config, source.fingerprint(flat))
    splits = {split: gathered(found) for split, found in pairs.items()}
    digest = digest_of(list(splits.values()))
    for split, images in splits.items():
        shown = [source.show(name) for name in names[split][0]]
        least = config.patch if split == "train" else -(-11 // config.scale) + 2
        check_sizes(images, shown, least, f"data.patch: {least}" if split == "train" else f"data.{split}")
    if "val" not in splits:
        held = round(len(pairs["train"]) * config.val_fraction)
        if not 0 < held < len(pairs["train"]):
            raise UserError(
                f"data.val_fraction: {config.val_fraction} of {len(pairs['train'])} images holds out none; "
                "name a folder at data.val"
            )
        generator = torch.Generator().manual_seed(sub_seed(seed, "split"))
        drawn = torch.randperm(len(pairs["train"]), generator=generator).tolist()
        splits["val"] = gathered([pairs["train"][index] for index in sorted(drawn[:held])])
        splits["train"] = gathered([pairs["train"][index] for index in sorted(drawn[held:])])
    return EnlargingData(
        train=Crops(splits["train"].to(device), config.crops),
        val=splits["val"].to(device),
        test=splits["test"].to(device),
        outputs=config.scale,
        patch=config.patch,
        augment=config.augment,
        digest=digest,
    )


def _scan(config: Config) -> tuple[Folder, _Names]:
    refuse_download(config, f"put {LAYOUT}")
    source, names = Folder(root_of(config, LAYOUT)), {}
    for split in _SPLITS:
        top, low = getattr(config, split), getattr(config, f"{split}_low")
        if top is None:
            if low is not None:
                raise UserError(f"data.{split}_low: {low!r} has no large images; name their folder at data.{split}")
            continue
        names[split] = _images_of(source, split, top), None if low is None else _images_of(source, f"{split}_low", low)
        large, small = names[split]
        if small is not None and len(small) != len(large):
            raise UserError(
                f"data.{split}_low: {source.show(low)} holds {len(small)} images, and {source.show(top)} {len(large)}"
            )
    return source, names


def _images_of(source: Folder, field: str, top: str) -> list[str]:
    if not (source.root / top).is_dir():
        raise UserError(f"data.{field}: no folder {source.show(top)}; image_pairs reads {LAYOUT}")
    found = source.names(top)
    if not found:
        raise UserError(f"data.{field}: {source.show(top)} holds no images")
    return found


@lru_cache(maxsize=2)
def _pairs(config: Config, fingerprint: str) -> "dict[str, list[tuple[Tensor, Tensor]]]":
    """Small and large images by split; a process with several runs decodes them once."""
    from harness.data._enlarging import smaller
    from harness.data._images import decode_one

    source, names = _scan(config)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    channels: dict[int, str] = {}
    for split, (large, small) in names.items():
        found[split] = []
        for index, name in enumerate(large):
            high = decode_one(source, name, grey=True)
            channels.setdefault(high.shape[2], name)
            if len(channels) > 1:
                grey, colour = (source.show(channels[count]) for count in (1, 3))
                raise UserError(f"data.root: {grey} is grey and {colour} is in colour; convert one, or remove it")
            low, high_cut = smaller(high, config.scale)
            if small is not None:
                low = _given(config, source, small[index], (name, high), low)
            found[split].append((low, high_cut))
    return found


def _given(config: Config, source: Folder, name: str, large: "tuple[str, np.ndarray]", made: "Tensor") -> "Tensor":
    """A small image as it is. Raises UserError where its size or colours are not those of the large one."""
    import torch

    from harness.data._images import decode_one

    low: Any = decode_one(source, name, grey=True)
    if low.shape != (*made.shape[1:], made.shape[0]):
        sizes = [f"{each.shape[1]}x{each.shape[0]}x{each.shape[2]}" for each in (low, large[1])]
        raise UserError(
            f"data.scale: {source.show(name)} is {sizes[0]} and {source.show(large[0])} is {sizes[1]} (width x height "
            f"x channels), which is no factor of {config.scale}"
        )
    return torch.from_numpy(low.transpose(2, 0, 1).copy())
