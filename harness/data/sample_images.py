"""Super-resolution on the two photographs that ship with scikit-learn, each 640x427 pixels.

The left two thirds of china.jpg train and its right third validates: no crop crosses the border, and each part is made
smaller by itself. flower.jpg tests.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.core.errors import UserError
from harness.data._config import EnlargingConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from harness.data._enlarging import EnlargingData


class Config(EnlargingConfig):
    """No files are needed: `root` and `download` change nothing."""

    name: Literal["sample_images"] = "sample_images"
    patch: int = Field(24, ge=4, le=96, description="side of training crops, in pixels of the small image")
    crops: int = Field(512, ge=1, le=10_000_000, description="crops in an epoch")


def check(config: Config) -> None:
    """Raises UserError where scikit-learn has no photographs."""
    _folder()


def shape(config: Config) -> tuple[tuple[int, int, int], int]:
    """(C, h, w) of a crop, and the factor of enlargement."""
    return (3, config.patch, config.patch), config.scale


def load(config: Config, seed: int, device: "torch.device | str") -> "EnlargingData":
    """The photographs on a device; nothing depends on the seed."""
    from harness.data._enlarging import Crops, EnlargingData, digest_of, gathered, smaller

    train, test = _photographs()
    border = train.shape[1] * 2 // 3 // config.scale * config.scale
    parts = (train[:, :border], train[:, border:], test)
    own, val, tested = (gathered([smaller(part, config.scale)]) for part in parts)
    return EnlargingData(
        train=Crops(own.to(device), config.crops),
        val=val.to(device),
        test=tested.to(device),
        outputs=config.scale,
        patch=config.patch,
        augment=config.augment,
        shuffle_colours=config.shuffle_colours,
        digest=digest_of([own, val, tested]),
    )


@lru_cache(maxsize=1)
def _photographs() -> "tuple[np.ndarray, np.ndarray]":
    """china.jpg and flower.jpg, uint8 (427, 640, 3)."""
    import numpy as np
    from PIL import Image

    china, flower = (np.asarray(Image.open(_folder() / name).convert("RGB")) for name in ("china.jpg", "flower.jpg"))
    return china, flower


def _folder() -> Path:
    """Where the files are: reading them without importing scikit-learn saves each process a second."""
    package = find_spec("sklearn")
    folder = Path(package.origin).parent / "datasets/images" if package and package.origin else None
    if folder is None or not (folder / "china.jpg").is_file():
        raise UserError(f"data.name: sample_images: no photographs at {folder}; install scikit-learn anew")
    return folder
