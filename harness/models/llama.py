"""Llama (Touvron et al. 2023, arXiv 2302.13971) of any size, with random weights, by the transformers library.

Pre-norm decoder: rotary positions, RMS norms, SwiGLU, no biases; with fewer `kv_heads` than `heads`, grouped queries.
The default is a small one for characters. Checkpoints: model `hf:<name or folder>`.
"""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from harness.core.errors import UserError
from harness.models.base import TaskModelConfig

if TYPE_CHECKING:
    from torch import nn

#: Hidden units are a multiple of this.
_ROUNDED_TO = 32


class Config(TaskModelConfig):
    """Settings of llama. Embeddings and the last layer are not tied."""

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling",)
    keeps_cache: ClassVar[bool] = True
    name: str = "llama"
    layers: int = Field(4, ge=1, le=256, description="decoder layers")
    width: int = Field(128, ge=2, le=65_536, description="of embeddings and of the residual stream")
    heads: int = Field(4, ge=1, le=1024, description="attention heads; width / heads is even")
    kv_heads: int | None = Field(None, ge=1, le=1024, description="heads of keys and values; null: as many as heads")
    hidden: int | None = Field(
        None, ge=1, le=1_000_000, description="units of the MLP; null: 8/3 of the width, rounded up to a multiple of 32"
    )
    rope_theta: float = Field(10_000.0, gt=1, le=1e9, description="base of the rotary positions' wavelengths")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.pretrained:
            raise UserError(
                "init: there are no pretrained weights of llama (legal: scratch, checkpoint:<path>); "
                "model hf:<name or folder> loads a checkpoint with its sizes"
            )
        if self.width % (2 * self.heads):
            raise UserError(f"heads: {self.heads}: width / heads must be even, and width is {self.width}")
        if self.heads % (self.kv_heads or 1):
            raise UserError(f"kv_heads: {self.kv_heads} does not divide the {self.heads} heads")
        return self


def build(config: Config, input_shape: tuple[int, ...], outputs: int) -> "nn.Module":
    """The model from tokens (N, T), T at most input_shape[0], to logits (N, T, outputs).

    Raises UserError where transformers is missing.
    """
    from harness.models._decoder import ATTENTION, as_decoder, transformers_for

    library = transformers_for(f"model {config.name!r}")
    hidden = config.hidden or -(-8 * config.width // (3 * _ROUNDED_TO)) * _ROUNDED_TO
    sizes = library.LlamaConfig(
        vocab_size=outputs,
        hidden_size=config.width,
        intermediate_size=hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=input_shape[0],
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation=ATTENTION,
    )
    return as_decoder(library.LlamaForCausalLM(sizes), config.name, input_shape, outputs)
