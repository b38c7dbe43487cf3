"""KIVI: keys per channel, values per token. Liu et al., ICML 2024 (arXiv 2402.02750).

Rounding of the keys and values that a decoder caches, found at run time; it trains nothing and needs no calibration.
Weights are rounded to nearest, as the point says.

Equations. k_t and v_t are the key (after RoPE) and the value of token t in one head, (D,), before heads are repeated.

    x' = m + s round((x - m) / s),   s = (M - m) / (2^b - 1)        m, M: the extremes of what shares a range
    keys:    a channel of `group` consecutive tokens shares a range
    values:  `group` channels of a token share a range
    token t has in float:  the keys of the last tokens, from floor(t / recent) recent on (t from 0): 1 to `recent`
                           the values of its own and the `recent` tokens before it

Outliers of keys are in few channels, so that a range for each channel keeps them from the others; a block of keys can
only be rounded when all its tokens are there, hence the ones in float. Keys are rounded `recent` at a time, values one
by one (released code).

Layers: all attention modules with slots for keys and values whose point has bits for these, in any decoder.

Use: `deploy.methods: [rtn, kivi]`, or `--deploy kivi` of harness.evaluate, at points with kv; others give no row. At
w4kv4 `rtn` is the plain rounding per token with groups. What share of the cache is in float depends on its length: of
128 tokens, with `recent: 32`, a query has on average two fifths of the keys and three fifths of the values in float.
Rows at short contexts flatter it therefore; the paper's have thousands of tokens.

Settings: the released code's examples have `group` 32 and `recent` 128; here 32, since contexts are short. A run's own
`kv.group` has no effect.

Sources: the released code (jy-yuan/KIVI: models/llama_kivi.py, as found in copies of it). The paper was not read.

Deviations: the prompt, too, is attended to as if it had been decoded token by token, so that one masked pass measures
decoding (released code: in float while it is read). Ranges are in fp32 (there: fp16). Codes are not clamped, as none
is beyond the extremes; where all values of a range are equal they stay (there: a division by 0).
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from harness.core.layer_points import AnyPoint, LayerPoints
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.key_value_points import key_value_bits
from harness.quantization.key_values import ChannelBlockQuantizer, TokenGroupQuantizer


class Kivi(Method):
    """Keys with a range for each channel of a block of tokens, values with ranges for each token; the last in float."""

    kind, acts_on = "deployment", "keys and values"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["kivi"] = "kivi"
        group: int = Field(
            32, ge=1, le=4096, description="tokens of a key channel, channels of a value, that share a range (released)"
        )
        recent: int = Field(
            32, ge=1, le=100_000, description="latest tokens in float, a multiple of group (released examples: 128)"
        )

        @model_validator(mode="after")
        def _whole_groups(self) -> Self:
            if self.recent % self.group:
                raise ValueError(f"recent ({self.recent}) must be a multiple of group ({self.group})")
            return self

    config: Config
    needs_target_bit: ClassVar[bool] = False

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(group=2, recent=4)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return point.has_kv

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        group, recent = self.config.group, self.config.recent
        written = point.mapping if isinstance(point, LayerPoints) else point
        for slots, bits in key_value_bits(model, written, self.context.exclude).values():
            slots.fill("key_quantizer", ChannelBlockQuantizer(bits, group, recent))
            slots.fill("value_quantizer", TokenGroupQuantizer(bits, group, recent + 1))
