"""Super-resolution on your own images: folders of large ones, such as DIV2K, Set5 and Set14.

Small images are made by bicubic interpolation, or read from folders that hold them in the same order. Images of a split
may differ in size.
"""

from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.config_base import IDENTITY_IF_CHANGED
from harness.core.errors import MissingDataError, UserError
from harness.core.seeding import sub_seed
from harness.data._config import EnlargingConfig, looked_at, refuse_download, root_of
from harness.data._named_splits import folder_like
from harness.data._sizes import check_headers, check_size
from harness.data._source import Folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.data._enlarging import EnlargingData, Images

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
    colour: bool = Field(
        default=False,
        description="read grey images as colour ones: some sets, such as Set14, have both",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )


#: Of each split: names of large and of small images, the latter None where they are to be made.
_Names = dict[str, tuple[list[str], list[str] | None]]


def check(config: Config) -> None:
    """Raises UserError: a folder missing or without images, small and large images of different numbers; images that
    are too small, by their headers; without `val`, a folder that is called so, or too few images to hold any out."""
    source, names = _scan(config)
    for split, (large, _) in names.items():
        check_headers(source, large, config.scale, *_needed(config, split))
    if "val" not in names:
        _held_out(config, len(names["train"][0]))


def _needed(config: Config, split: str) -> tuple[int, str]:
    """The shortest side that a small image of a split may have, in pixels, and what needs it."""
    if split == "train":
        return config.patch, f"data.patch: {config.patch}"
    return -(-11 // config.scale) + 2, f"data.{split}"


def _held_out(config: Config, count: int) -> int:
    """How many of the training images validate. Raises UserError for none."""
    held = round(count * config.val_fraction)
    if not 0 < held < count:
        raise UserError(
            f"data.val_fraction: {config.val_fraction} of {count} images holds out none; name a folder at data.val"
        )
    return held


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, h, w) of a crop, by the first image, and the factor of enlargement."""
    from harness.data._decoding import decode_one

    source, names = _scan(config)
    first = decode_one(source, names["train"][0][0], grey=not config.colour)
    return (first.shape[2], config.patch, config.patch), config.scale


def load(config: Config, seed: int, device: "torch.device | str") -> "EnlargingData":
    """All images on a device. Where there is no val, `seed` draws it from the images of train.

    Raises UserError like `check`; damaged images; a grey image among colour ones or the other way round; sizes that do
    not match, or are too small.
    """
    import torch

    from harness.data._enlarging import Crops, EnlargingData

    source, names = _scan(config)
    flat = [name for pair in names.values() for part in pair if part for name in part]
    found, digest = _splits(config, source.fingerprint(flat))
    splits = dict(found)
    for split, images in splits.items():
        for name, image in zip(names[split][0], images.high, strict=True):
            check_size(source.show(name), image.shape[:0:-1], config.scale, *_needed(config, split))
    if "val" not in splits:
        count = len(splits["train"])
        held = _held_out(config, count)
        generator = torch.Generator().manual_seed(sub_seed(seed, "split"))
        drawn = torch.randperm(count, generator=generator).tolist()
        splits["val"], splits["train"] = (found["train"].some(sorted(part)) for part in (drawn[:held], drawn[held:]))
    return EnlargingData(
        train=Crops(splits["train"].to(device), config.crops),
        val=splits["val"].to(device),
        test=splits["test"].to(device),
        outputs=config.scale,
        patch=config.patch,
        augment=config.augment,
        shuffle_colours=config.shuffle_colours,
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
    if config.val is None:
        _refuse_unused_validation(config, source.root)
    return source, names


def _refuse_unused_validation(config: Config, root: Path) -> None:
    """Raise UserError for a folder called like the validation split that no setting uses."""
    name = folder_like("val", root)
    used = (config.train, config.test, config.train_low, config.test_low)
    if name and not any((root / each).resolve().is_relative_to((root / name).resolve()) for each in used if each):
        raise UserError(
            f"data.root: {root / name} would not be used, and {config.val_fraction} of the images of {config.train} "
            f"would validate, as data.val is not set; set data.val: {name}, or, to leave it out, rename the folder"
        )


def _images_of(source: Folder, field: str, top: str) -> list[str]:
    if not (source.root / top).is_dir():
        raise MissingDataError(f"data.{field}: no folder {looked_at(source.root / top)}; image_pairs reads {LAYOUT}")
    found = source.names(top)
    if not found:
        raise UserError(f"data.{field}: {source.show(top)} holds no images")
    return found


@lru_cache(maxsize=2)
def _splits(config: Config, fingerprint: str) -> "tuple[dict[str, Images], str]":
    """Small and large images by split, and the digest of all; decoded once, by this process or an earlier one."""
    from harness.data._cache import decoded_once
    from harness.data._enlarging import Images, digest_of

    source, names = _scan(config)

    def make() -> "tuple[dict[str, Images], str]":
        found = _decoded(config, source, names)
        return found, digest_of(list(found.values()))

    def pack(made: "tuple[dict[str, Images], str]") -> dict[str, Any]:
        return {"splits": {split: [list(of.low), list(of.high)] for split, of in made[0].items()}, "digest": made[1]}

    def unpack(stored: Any) -> "tuple[dict[str, Images], str] | None":
        found = {split: Images(*map(tuple, parts)) for split, parts in stored["splits"].items()}
        return (found, stored["digest"]) if digest_of(list(found.values())) == stored["digest"] else None

    # Which of the files that the fingerprint counts is what: two divisions of the same files are two data sets.
    counts = [(split, len(large), small is not None) for split, (large, small) in names.items()]
    return decoded_once(config.name, f"{config.scale}/{config.colour}/{counts}/{fingerprint}", make, pack, unpack)


def _decoded(config: Config, source: Folder, names: _Names) -> "dict[str, Images]":
    """Raises UserError as `load` says; of several reasons, for the first image in order."""
    from harness.data._enlarging import gathered
    from harness.data._images import pool

    found: dict[str, Images] = {}
    kinds: dict[int, str] = {}  # channels -> the first image that has them
    with pool() as workers:
        for split, (large, small) in names.items():
            jobs = list(zip(large, small or repeat(None, len(large)), strict=True))
            pairs = list(workers.map(lambda job: _pair(config, source, *job), jobs))
            for job, pair in zip(jobs, pairs, strict=True):
                for name, image in zip(job, reversed(pair), strict=True):
                    if name is not None:
                        kinds.setdefault(len(image), name)
            if len(kinds) > 1:
                grey, colour = (source.show(kinds[channels]) for channels in (1, 3))
                raise UserError(
                    f"data.root: {grey} is grey and {colour} is in colour; convert one, remove it, or set data.colour: "
                    "true, which reads all as colour"
                )
            found[split] = gathered(pairs)
    return found


def _pair(config: Config, source: Folder, name: str, small: str | None) -> "tuple[Tensor, Tensor]":
    """A small image, made or as given, and the large one, cut. Raises UserError where their sizes do not match."""
    import torch

    from harness.data._decoding import decode_one
    from harness.data._enlarging import smaller

    large = decode_one(source, name, grey=not config.colour)
    check_size(source.show(name), large.shape[1::-1], config.scale, 1, "data.scale")
    low, high = smaller(large, config.scale)
    if small is None:
        return low, high
    given = torch.from_numpy(decode_one(source, small, grey=not config.colour).transpose(2, 0, 1).copy())
    if given.shape[1:] != low.shape[1:]:
        raise UserError(
            f"data.scale: {source.show(small)} is {given.shape[2]}x{given.shape[1]} and {source.show(name)} is "
            f"{large.shape[1]}x{large.shape[0]} (width x height), which is no factor of {config.scale}"
        )
    return given, high
