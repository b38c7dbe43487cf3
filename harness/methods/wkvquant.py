"""WKVQuant: weights, and keys and values of the past. Yue et al. 2024 (arXiv 2402.12065).

Post-training quantization of weights and of the keys and values that a decoder caches; other activations stay float
(unless the point has bits for them, too). It trains no weight.

Equations. k_t and v_t are the key (after RoPE) and the value of token t in one head, (D,); k'_t and v'_t rounded ones.

    past-only:  token t attends to k'_1 .. k'_(t-1), k_t and to v'_1 .. v'_(t-1), v_t      its own are not rounded yet
    smoothing:  k' = s q((k - d) / s) + d,   likewise v'         s > 0 and d for each channel, (H, D), of all tokens
    q():        2^b levels between the extremes of each group of a token's channels, found at run time (`kv.group`)
    clipping:   w' = c nearest(w / c)                            c for each tensor, or row, as the run's grid has them
    learning:   loss = sum_j mean | F_j(x') - F*_j(x) |          j = 0 .. blocks_ahead

The blocks of the decoder are taken in order. F_0(x') is a block's output as deployed, for inputs x' from deployed ones
before; F_j(x') is what j more blocks, in float, make of it; F*_j(x) are the same outputs of the float network. Absolute
differences, so that few large ones do not decide. s, d and c of a block are learned by Adam, all else stays. Where that
does not lower the loss on all calibration sequences, the start is kept: d half-way between a channel's extremes on
these, s half the distance to the power of `power`, over its geometric mean in the head, c = 1.

s moves into the projections (`folded`), which are rounded afterwards: query and output weights are multiplied, those of
keys and values divided. RoPE turns channels c and c + D / 2 into one another, so both get one s; query heads that share
a key head share its s. Where this changes what a block computes (norms behind the projections, RoPE in other pairs,
joint projections), and with `fold: false`, s stays with the rounding of the cache. d always does, behind RoPE.

Layers: a decoder whose blocks are members of one list, with one attention each whose keys and values have slots, and
linear layers. The grid of a weight is that of round-to-nearest, fitted to the folded weight, or the one that a layer
was trained with. Layers outside of the blocks are rounded to nearest. One float network is what all is compared with:
of a network trained through a quantizer, its latent weights. Quantizers of activations are not seen here.

Use: `deploy.methods: [rtn, wkvquant]`, or `--deploy wkvquant` of harness.evaluate, at points with kv; others give no
row. Each part can be left out: `past_only: false`, `smoothing: false`, `blocks_ahead: 0` (a block's own output alone),
`loss: mse`, `iterations: 0` (nothing is learned). With all left out it is round-to-nearest (`rtn`). It draws no random
numbers.

Settings: learning rates of OmniQuant's code (main.py: smoothing 5e-3, clipping 1e-2; 128 texts of 2048 tokens, one a
step, 10 epochs: 1280 steps) times 1280 / iterations, which is how far they can move; its clipping factor and Adam.

Sources: the abstract, and public notes for past-only rounding, were read; the paper could not be. "Two-dimensional" as
smoothing of channels and then groups of tokens, and cross-block reconstruction as above, are from memory, as are the
five blocks ahead and 128 channels a group; clipping and learning are those of OmniQuant (its code), on which the paper
builds. One public note instead has the axis of least variance for each layer, GPTQ for weights, and squared errors.

Deviations: c starts at 1 (OmniQuant: sigmoid(4)) and may exceed it by 2 %; one grid for a weight as the run says
(there: asymmetric, in groups of 128). The prompt, too, is attended to as if it had been decoded token by token, so that
one masked pass measures decoding (there: in float while it is read).
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from harness.core.layer_points import AnyPoint, LayerPoints
from harness.methods._blocks import BlockInputs, decoder_blocks
from harness.methods._reconstruction import Reconstruction, as_deployed
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.deploy import Choice, choices, round_rest
from harness.quantization.key_value_points import key_value_bits, key_value_slots
from harness.quantization.key_value_smoothing import ExtremesRecorder


class WkvQuant(Method):
    """Rounding of weights and of past keys and values, with smoothed channels, learned block by block."""

    kind, acts_on = "deployment", "weights, keys and values"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["wkvquant"] = "wkvquant"
        sequences: int = Field(64, ge=1, le=1_000_000, description="of calibration (OmniQuant: 128 of 2048 tokens)")
        batch: int = Field(8, ge=1, le=100_000, description="sequences of one step (OmniQuant: 1)")
        past_only: bool = Field(True, description="whether a token's own key and value stay float (paper)")
        smoothing: bool = Field(True, description="whether channels of keys and values are shifted and scaled (paper)")
        power: float = Field(
            0.5, ge=0, le=1, description="of a channel's range in its first scale; 1: all ranges alike (OmniQuant: 0.5)"
        )
        fold: bool = Field(True, description="whether scales move into the projections, where they can (paper)")
        clipping: bool = Field(True, description="whether ranges of weights are learned (paper)")
        blocks_ahead: int = Field(
            2, ge=0, le=1000, description="further blocks whose outputs are compared; 0: none (paper, from memory: 5)"
        )
        loss: Literal["mae", "mse"] = Field("mae", description="of outputs: absolute differences (paper), or squared")
        iterations: int = Field(100, ge=0, le=1_000_000, description="of Adam for each block (OmniQuant: 1280)")
        clipping_rate: float = Field(1e-2, gt=0, le=10, description="learning rate for 1280 iterations (OmniQuant)")
        smoothing_rate: float = Field(5e-3, gt=0, le=10, description="learning rate for 1280 iterations (OmniQuant)")

    config: Config
    needs_target_bit: ClassVar[bool] = False
    changes_activations = True

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(sequences=8, batch=4, iterations=3, blocks_ahead=1)

    @classmethod
    def serves(cls, point: AnyPoint) -> bool:
        return point.has_kv

    def check(self, model: nn.Module) -> None:
        if key_value_slots(model):
            decoder_blocks(model)

    def deploy(self, model: nn.Module, point: AnyPoint, calibration: Calibration) -> None:
        if not self.serves(point):
            return
        context, config = self.context, self.config
        caches = key_value_bits(model, point.mapping if isinstance(point, LayerPoints) else point, context.exclude)
        rounded = choices(model, point, context.scale, context.quantizer, context.exclude)
        reference = round_rest(deepcopy(model), "float", exclude=context.exclude).requires_grad_(False)
        seen = _recorders(reference) if config.smoothing else {}
        inputs = BlockInputs(reference, calibration.images(config.sequences), config.batch)
        for slots in key_value_slots(reference).values():
            slots.add_slots()  # empty again
        blocks, deployed = decoder_blocks(reference), decoder_blocks(model)
        found, wanted = list(inputs.first), list(inputs.first)
        for place, name in enumerate(blocks):
            (attention,) = (each for each in key_value_slots(model) if each.startswith(f"{name}."))
            ahead = list(blocks)[place + 1 : place + 1 + config.blocks_ahead]
            bits = caches[attention][1] if attention in caches else None
            one = Reconstruction(
                config=config,
                inputs=inputs,
                name=name,
                blocks={each: blocks[each] for each in (name, *ahead)},
                attention=attention.removeprefix(f"{name}."),
                choices=_inside(name, rounded),
                seen=seen.get(attention),
                kv=None if bits is None else (bits, context.kv.group),
            )
            targets = [one.outputs(x, batch) for batch, x in enumerate(wanted)]
            one.learn(found, targets)
            as_deployed(deployed[name], one)
            with torch.no_grad():
                found = [inputs.run(name, deployed[name], x, batch) for batch, x in enumerate(found)]
            wanted = [each[0] for each in targets]


def _recorders(network: nn.Module) -> dict[str, tuple[ExtremesRecorder, ExtremesRecorder]]:
    """By the name of the attention: what keeps the extremes of its keys and of its values, in their slots now."""
    found = {}
    for name, slots in key_value_slots(network).items():
        found[name] = ExtremesRecorder(), ExtremesRecorder()
        for slot, recorder in zip(slots.SLOTS, found[name], strict=True):
            slots.fill(slot, recorder)
    return found


def _inside(block: str, layers: Mapping[str, Choice]) -> dict[str, Choice]:
    """Those of a block, by their names in it."""
    return {name.removeprefix(f"{block}."): each for name, each in layers.items() if name.startswith(f"{block}.")}
