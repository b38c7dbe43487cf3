"""The `data` section of a run's configuration. Free of torch, so that a slip in it is refused at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from harness.core.config_base import IDENTITY_IF_CHANGED, NOT_IDENTITY, StrictConfig
from harness.core.errors import MissingDataError, UserError, nearest
from harness.core.validation import explain

#: Tokenizers: one of no package, and the prefix of those of the transformers library.
CHARACTERS, HF = "characters", "hf:"


class RandomResizedCrop(StrictConfig):
    """Training sees crops of random size and shape, made the size of images in evaluation."""

    scale: tuple[float, float] = Field((0.08, 1.0), description="share of the image's area, from and to")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height, from and to")

    @field_validator("scale", "ratio")
    @classmethod
    def _ascend(cls, given: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        most = 1 if info.field_name == "scale" else 100
        if not 0 < given[0] <= given[1] <= most:
            raise ValueError(f"write two numbers above 0, ascending, up to {most}")
        return given


class Augment(StrictConfig):
    """Random changes to training images, drawn anew each time an image is seen. Off by default."""

    crop_padding: int = Field(
        0, ge=0, le=64, description="zero-pad each side by this many pixels, then crop at random; 0 is off"
    )
    flip: bool = Field(False, description="mirror left to right with probability 1/2")
    random_resized_crop: RandomResizedCrop | None = Field(
        None,
        description="crops of random size and shape, resized to the size of evaluation; {}: its defaults; null: off",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )

    @property
    def active(self) -> bool:
        """Whether training images are changed at all."""
        return self.flip or self.crop_padding > 0 or self.random_resized_crop is not None

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.crop_padding and self.random_resized_crop:
            raise ValueError("crop_padding and random_resized_crop both crop; set one of them")
        return self


class ShorterSide(StrictConfig):
    """Images keep their aspect: the shorter side is resized, and the square in the middle is kept."""

    shorter_side: int = Field(ge=1, le=1024, description="in pixels, of the square that is kept")
    crop: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="side of the square in its middle that evaluation sees, and training without random_resized_crop; "
        "null: all of it",
    )

    @model_validator(mode="after")
    def _crop_is_inside(self) -> Self:
        if self.crop is not None and self.crop > self.shorter_side:
            raise ValueError(f"crop: {self.crop} is more than shorter_side: {self.shorter_side}")
        return self


#: How images are made one size: squares of a side, or by their shorter side; None: they are of one size.
Resize = int | ShorterSide | None


class TaskDataConfig(StrictConfig):
    """What the data set of any task can be told. Each data-set file sets its own `name`, and its `task`."""

    #: A file of harness/tasks.
    task: ClassVar[str] = "classification"

    name: str = Field(description="a file of harness/data")
    root: Path | None = Field(
        None,
        description="folder that holds the files; left out where the data come with a package",
        json_schema_extra=NOT_IDENTITY,
    )
    download: bool = Field(
        default=False,
        description="fetch missing files, where the data set can; nothing is ever fetched without it",
        json_schema_extra=NOT_IDENTITY,
    )


class DataConfig(TaskDataConfig):
    """What every data set of classes of images can be told."""

    val_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="part of train set aside for validation, unless files give a val split"
    )
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="part of the training images kept, every class alike; for quick studies"
    )
    normalize: Literal["unit", "standardize"] = Field(
        "standardize", description="unit: [0, 1]; standardize: mean 0 and deviation 1 per channel over train"
    )
    resize: int | None = Field(
        None, ge=1, le=1024, description="side in pixels; images are made squares of it (aspect is not kept)"
    )
    augment: Augment = Field(Augment(), description="random changes to training images")
    residency: Literal["auto", "device", "host"] = Field(
        "auto",
        description="where images are kept: memory of the device or of the host; auto: where they fit",
        json_schema_extra=NOT_IDENTITY,
    )

    @property
    def evaluation_crop(self) -> int | None:
        """Side of the square in the middle of images that evaluation sees; None: it sees all of them."""
        return None


class FilesConfig(DataConfig):
    """What a data set can be told whose images are files, decoded into the cache."""

    resize: Annotated[int, Interval(ge=1, le=1024)] | ShorterSide | None = Field(  # type: ignore[assignment]
        None,
        description="side in pixels (1 to 1024) of squares that images are made (aspect is not kept), or "
        "{shorter_side: 256, crop: 224}, which keeps it",
    )
    residency: Literal["auto", "device", "host", "disk"] = Field(  # type: ignore[assignment]
        "auto",
        description="where decoded images are kept: memory of the device or of the host, or disk, a file of the cache "
        "that is mapped into memory; auto: where they fit",
        json_schema_extra=NOT_IDENTITY,
    )

    @field_validator("resize", mode="before")
    @classmethod
    def _side_or_section(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            try:
                return ShorterSide.model_validate(dict(given))
            except ValidationError as error:
                raise ValueError(explain(error, ShorterSide)) from None
        number = isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= 1024
        if number or given is None or isinstance(given, ShorterSide):
            return given
        raise ValueError("no side (legal: 1 to 1024 pixels, or a section such as {shorter_side: 256, crop: 224})")

    @property
    def evaluation_crop(self) -> int | None:
        """See `DataConfig.evaluation_crop`."""
        return self.resize.crop if isinstance(self.resize, ShorterSide) else None


class EnlargingConfig(TaskDataConfig):
    """What every data set of super-resolution can be told."""

    task: ClassVar[str] = "super_resolution"

    scale: Literal[2, 3, 4] = Field(2, description="factor by which images are enlarged")
    patch: int = Field(48, ge=4, le=1024, description="side of training crops, in pixels of the small image (EDSR: 48)")
    crops: int = Field(16000, ge=1, le=10_000_000, description="crops in an epoch (EDSR: 16000)")
    augment: bool = Field(True, description="flip and rotate crops at random")
    shuffle_colours: bool = Field(
        False,
        description="put the colour channels of each crop in a random order: more colours than few images have",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )


class TextConfig(TaskDataConfig):
    """What every data set of language modelling can be told."""

    task: ClassVar[str] = "language_modelling"

    context: int = Field(128, ge=2, le=1_000_000, description="tokens of a window, all of which are predicted")
    windows: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="windows drawn in an epoch; null: as many as the text has side by side",
    )
    tokenizer: str = Field(
        CHARACTERS, description="characters, or hf:<name or folder> for a tokenizer of the transformers library"
    )

    @field_validator("tokenizer")
    @classmethod
    def _has_a_form(cls, tokenizer: str) -> str:
        if tokenizer == CHARACTERS or tokenizer.removeprefix(HF) not in ("", tokenizer):
            return tokenizer
        raise ValueError(f"no tokenizer{nearest(tokenizer, [CHARACTERS])} (legal: {CHARACTERS}, {HF}<name or folder>)")


def root_of(config: TaskDataConfig, layout: str) -> Path:
    """The folder or file `data.root` names, with `~` expanded.

    layout: what has to lie there, for the message. Raises MissingDataError where the root is unset or missing.
    """
    how = f"{config.name} reads {layout}; set it with --set data.root=PATH or as base.data.root in a sweep file"
    if config.root is None:
        raise MissingDataError(f"data.root is not set: {how}")
    root = config.root.expanduser()
    if not root.exists():
        raise MissingDataError(f"data.root: nothing is at {looked_at(root)}: {how}")
    return root


def looked_at(path: Path) -> str:
    """A path in a message, with the whole path where it is relative, which is to the working directory."""
    if path.is_absolute():
        return str(path)
    return f"{path} ({path.absolute()}; data.root is relative to the working directory)"


def refuse_download(config: TaskDataConfig, where: str) -> None:
    """Raise UserError if `data.download` asks for files it cannot fetch; `where` says who can."""
    if config.download:
        raise UserError(f"data.download: {config.name} is not fetched by the harness: {where}")
