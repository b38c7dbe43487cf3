"""A checkpoint of the transformers library: `name: hf:./folder`, `name: hf:HuggingFaceTB/SmolLM2-135M`.

Any decoder whose weights are in linear layers and whose attention goes through AttentionInterface. Its tokenizer is
named at `data.tokenizer`, in the same way.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from harness.core.errors import UserError
from harness.core.hub import folder_of, opened
from harness.models.base import TaskModelConfig

if TYPE_CHECKING:
    from torch import nn

_PREFIX = "hf:"


class Config(TaskModelConfig):
    """Settings of checkpoints."""

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling",)
    keeps_cache: ClassVar[bool] = True
    init: str = Field(
        "pretrained", description="pretrained: the checkpoint's weights; scratch: random ones; checkpoint:<path>"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        source = name.removeprefix(_PREFIX)
        if source in ("", name):
            raise UserError("not of the form hf:<name or folder>")
        folder = folder_of(source)
        if folder is not None and not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "is not there"
            raise UserError(f"{folder} {what}; save_pretrained of transformers writes such a folder")
        return name


def build(config: Config, input_shape: tuple[int, ...], outputs: int) -> "nn.Module":
    """The model from tokens (N, T) to logits (N, T, its vocabulary), in fp32.

    Raises UserError where transformers is missing, for what cannot be loaded, and as `as_decoder` does.
    """
    from harness.models._decoder import ATTENTION, as_decoder, transformers_for

    library = transformers_for(f"model {config.name!r}")
    network = _loaded(library, config, ATTENTION)
    return as_decoder(network, config.name, input_shape, outputs)


def _loaded(library: Any, config: Config, attention: str) -> Any:
    import torch

    library.utils.logging.disable_progress_bar()
    source, reaching = opened(config.name.removeprefix(_PREFIX))
    how: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32}
    try:
        with reaching:
            if config.pretrained:
                return library.AutoModelForCausalLM.from_pretrained(source, **how)
            return library.AutoModelForCausalLM.from_config(library.AutoConfig.from_pretrained(source), **how)
    except Exception as error:  # many types, those of huggingface_hub and safetensors among them
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"model {config.name!r} cannot be loaded ({type(error).__name__}: {reason})") from error
