"""What every model's configuration has: its name, its initial weights and the image size it sees."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.core.config_base import IDENTITY_IF_CHANGED, StrictConfig
from harness.core.errors import UserError, nearest

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".pth.tar")
CHECKPOINT = "checkpoint:"
_FORMS = ("scratch", "pretrained", "checkpoint:<path>")


class TaskModelConfig(StrictConfig):
    """Base of the `Config` of a model for any task. A model names the `tasks` that it serves, and adds its settings."""

    #: Files of harness/tasks.
    tasks: ClassVar[tuple[str, ...]]
    #: Whether its attention passes keys and values through slots, so that points may have bits for them (w4kv4).
    keeps_cache: ClassVar[bool] = False

    name: str = Field(description="the model's file name, as in mlp5; timm:<name> for any of timm's")
    init: str = Field(
        "scratch",
        description="initial weights: scratch, pretrained, checkpoint:<path>, or a path to .safetensors, .pt, .pth, "
        ".pth.tar",
    )

    @field_validator("init")
    @classmethod
    def _check_init(cls, init: str) -> str:
        path = init.removeprefix(CHECKPOINT)
        if init in _FORMS[:2] or Path(path).name.endswith(WEIGHT_FILES):
            return init
        if init.startswith(CHECKPOINT):
            raise UserError(f"a checkpoint is a path ending in {', '.join(WEIGHT_FILES)}")
        raise UserError(
            f"none of {', '.join(_FORMS)}, nor a path ending in {', '.join(WEIGHT_FILES)}{nearest(init, _FORMS[:2])}"
        )

    @property
    def pretrained(self) -> bool:
        """Whether the initial weights are the published ones."""
        return self.init == "pretrained"

    @property
    def checkpoint(self) -> Path | None:
        """The file that the initial weights come from, where there is one."""
        if self.init in _FORMS[:2]:
            return None
        return Path(self.init.removeprefix(CHECKPOINT)).expanduser()


class ModelConfig(TaskModelConfig):
    """Base of the `Config` of a classifier of images, which may have a `min_image_side`."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    #: The shorter image side in pixels below which the model does not work: smaller images are enlarged.
    min_image_side: ClassVar[int] = 1

    head: Literal["keep", "new"] = Field(
        "keep",
        description="the classifier of a checkpoint: keep, or new for other classes (published weights get a new one "
        "where classes differ)",
        json_schema_extra=IDENTITY_IF_CHANGED,
    )
    image_side: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="resize images, in the forward pass, to this shorter side in pixels; "
        "null: only enlarge them to what the model needs",
    )

    @model_validator(mode="after")
    def _check_head(self) -> Self:
        if self.head == "new" and self.checkpoint is None:
            raise UserError(f"head: new is for init: checkpoint:<path>, not {self.init!r}")
        return self

    def check_pretrained(self, **required: object) -> None:
        """For pretrained, raise a UserError naming the settings that differ from those of the published weights."""
        given = {name: getattr(self, name) for name in required}
        wrong = [name for name in required if given[name] != required[name]]
        if self.pretrained and wrong:
            needed = ", ".join(f"{name}={required[name]} (not {given[name]})" for name in wrong)
            raise UserError(f"model {self.name}: pretrained weights need {needed}")
