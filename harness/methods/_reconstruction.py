"""One block of a decoder whose rounding of weights, keys and values is learned; for `wkvquant`.

The block runs as it will be deployed, with parameters in place of constants: clipping factors of weights, and shifts
and scales of keys and values.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods._blocks import BlockInputs
from harness.quantization.deploy import Choice, set_deployed
from harness.quantization.key_value_smoothing import (
    ExtremesRecorder,
    Projections,
    SmoothedGroupQuantizer,
    paired,
    relative_to_head,
)
from harness.quantization.key_values import KeyValueSlots, TokenGroupQuantizer
from harness.quantization.slots import QuantLayer
from harness.quantization.value_grid import ValueGrid

#: Where OmniQuant's clipping factors, sigmoids, start; and its steps.
_START, _STEPS = 4.0, 1280
#: How far a block's outputs may be from the float ones once scales are folded, relative to the largest.
_TOLERANCE = 1e-3


@dataclass
class Reconstruction:
    """A block that is being learned.

    name: the block's; blocks: it in float, and those after it that are compared, by name. attention, choices: the name
    of the attention and the layers that are rounded, by their names in the block. seen: extremes of keys and values on
    calibration sequences; None: no smoothing. kv: bits and group of keys and values; None: they stay float.
    """

    config: Any  # WkvQuant.Config
    inputs: BlockInputs
    name: str
    blocks: Mapping[str, nn.Module]
    attention: str
    choices: Mapping[str, Choice]
    seen: tuple[ExtremesRecorder, ExtremesRecorder] | None
    kv: tuple[int, int] | None
    block: nn.Module = field(init=False)
    projections: Projections | None = field(init=False, default=None)
    clips: dict[str, Tensor] = field(init=False, default_factory=dict)
    grids: dict[str, ValueGrid] = field(init=False, default_factory=dict)
    smooth: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.block = deepcopy(self.blocks[self.name])
        if self.kv is not None:
            if self.seen is not None:
                self._start_smoothing(*self.seen)
            fill_cache(self._slots(), self.config.past_only, self.kv, self.seen)
        weights = self.folded()
        for name, choice in self.choices.items():
            values = choice.values(weights[f"{name}.weight"].detach())
            self.grids[name] = ValueGrid(values)
            self.clips[name] = torch.zeros(len(values), 1, device=values.device)

    def _slots(self) -> KeyValueSlots:
        return next(each for each in self.block.modules() if isinstance(each, KeyValueSlots))

    def _start_smoothing(self, keys: ExtremesRecorder, values: ExtremesRecorder) -> None:
        heads, size = keys.middle.shape
        if self.config.fold and (found := Projections.of(self._attention(self.block), heads, size)):
            self.projections = found if self._same_when(found, heads, size) else None
        shared = paired(keys.half_range) if self.projections else keys.half_range
        self.smooth = {
            "key_scale": self.config.power * relative_to_head(shared).log(),
            "value_scale": self.config.power * relative_to_head(values.half_range).log(),
            "key_shift": torch.zeros_like(keys.middle),
            "value_shift": torch.zeros_like(values.middle),
        }

    def _attention(self, block: nn.Module) -> nn.Module:
        return block.get_submodule(self.attention)

    @torch.no_grad()
    def _same_when(self, projections: Projections, heads: int, size: int) -> bool:
        """Whether scales folded into the projections leave what the block computes as it is."""
        device = next(self.block.parameters()).device
        scale = torch.linspace(0.5, 2, heads * size // 2, device=device).view(heads, -1).repeat(1, 2)
        self.projections = projections
        state = self._with_factors(projections.factors(scale, scale.flip(-1)))
        x = self.inputs.first[0]
        plain, folded = (self.inputs.run(self.name, self.block, x, 0, each) for each in (None, state))
        return bool((plain - folded).abs().amax() <= _TOLERANCE * (plain - x).abs().amax())

    def _with_factors(self, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's parameters, with the projections' multiplied."""
        state: dict[str, Tensor] = dict(self.block.named_parameters())
        for name, factor in factors.items():
            weight, bias = (f"{self.attention}.{name}.{which}" for which in ("weight", "bias"))
            state[weight] = state[weight] * factor
            if bias in state and factor.shape[1] == 1:  # of rows
                state[bias] = state[bias] * factor[:, 0]
        return state

    def scales(self) -> tuple[Tensor, Tensor]:
        """Of keys and of values, (H, D)."""
        key = self.smooth["key_scale"].exp()
        return (torch.cat([key, key], -1) if self.projections else key), self.smooth["value_scale"].exp()

    def folded(self) -> dict[str, Tensor]:
        """The block's parameters in float, scales folded into them where they can be."""
        if not self.projections:
            return dict(self.block.named_parameters())
        return self._with_factors(self.projections.factors(*self.scales()))

    def rounded(self) -> dict[str, Tensor]:
        """The same with weights on their grids; sets shifts and scales of the block's cache, too. All with a graph."""
        state = self.folded()
        for name, grid in self.grids.items():
            clip = self.clips[name]
            factor = (clip + _START).sigmoid() / torch.full_like(clip, _START).sigmoid()  # exactly 1 at the start
            state[f"{name}.weight"] = clipped(state[f"{name}.weight"], grid, factor)
        if self.smooth and self.seen is not None:
            self.set_cache(self._slots())
        return state

    def set_cache(self, slots: KeyValueSlots) -> None:
        """Set shift and scale of what fills the slots."""
        assert self.seen is not None, "smoothing has seen keys and values"
        quantizers = (slots.key_quantizer, slots.value_quantizer)
        for kind, quantizer, seen, scale in zip(("key", "value"), quantizers, self.seen, self.scales(), strict=True):
            assert isinstance(quantizer, SmoothedGroupQuantizer)
            shift = seen.middle + seen.half_range * self.smooth[f"{kind}_shift"]
            if self.projections:  # what comes is divided by the scale already
                shift, scale = shift / scale, torch.ones_like(scale)
            quantizer.shift, quantizer.scale = shift[:, None], scale[:, None]

    @torch.no_grad()
    def outputs(self, x: Tensor, batch: int) -> list[Tensor]:
        """Those of the block and of the blocks after it, in float."""
        found = []
        for name, block in self.blocks.items():
            x = self.inputs.run(name, block, x, batch)
            found.append(x)
        return found

    def loss(self, x: Tensor, targets: Sequence[Tensor], batch: int) -> Tensor:
        """The error of the block as deployed, and of what the blocks after it make of it, (); with a graph."""
        total = x.new_zeros(())
        state: dict[str, Tensor] | None = self.rounded()
        for name, target in zip(self.blocks, targets, strict=True):
            x = self.inputs.run(name, self.block if state else self.blocks[name], x, batch, state)
            error = x - target
            total = total + (error.abs() if self.config.loss == "mae" else error.square()).mean()
            state = None
        return total

    def learn(self, xs: Sequence[Tensor], targets: Sequence[Sequence[Tensor]]) -> None:
        """Learn on batches of inputs, from deployed blocks, and of float outputs. Keeps the start if that is better."""
        config = self.config
        learned = [(self.smooth, config.smoothing_rate), (self.clips if config.clipping else {}, config.clipping_rate)]
        groups = [
            {"params": [each.requires_grad_() for each in parameters.values()], "lr": rate * _STEPS / config.iterations}
            for parameters, rate in learned
            if config.iterations and parameters
        ]
        if groups:
            every = [each for group in groups for each in group["params"]]
            start, before = [each.detach().clone() for each in every], self._total(xs, targets)
            with torch.enable_grad():
                self._descend(torch.optim.Adam(groups), xs, targets)
            for each in every:
                each.requires_grad_(False)
            if not self._total(xs, targets) < before:
                for each, first in zip(every, start, strict=True):
                    each.copy_(first)

    def _descend(
        self, optimizer: torch.optim.Optimizer, xs: Sequence[Tensor], targets: Sequence[Sequence[Tensor]]
    ) -> None:
        for index in range(self.config.iterations):
            batch = index % len(xs)
            optimizer.zero_grad()
            self.loss(xs[batch], targets[batch], batch).backward()
            optimizer.step()

    @torch.no_grad()
    def _total(self, xs: Sequence[Tensor], targets: Sequence[Sequence[Tensor]]) -> float:
        return sum(float(self.loss(x, targets[batch], batch)) for batch, x in enumerate(xs))


def clipped(weight: Tensor, grid: ValueGrid, factor: Tensor) -> Tensor:
    """The nearest values of a grid times a factor, (1, 1) or (O, 1), to a weight (O, I); with a graph.

    The gradient passes straight through inside the grid and is 0 outside; the factor gets its own.
    """
    scaled = weight / factor
    nearest = grid.nearest(scaled.detach())
    within = (scaled >= grid.values[:, :1]) & (scaled <= grid.values[:, -1:])
    return factor * (nearest + (scaled - scaled.detach()) * within)


def fill_cache(
    slots: KeyValueSlots,
    past_only: bool,
    kv: tuple[int, int],
    seen: tuple[ExtremesRecorder, ExtremesRecorder] | None,
) -> None:
    """Fill the slots of an attention; smoothed, with shift 0 and scale 1, where extremes are given."""
    bits, group = kv
    recent = 1 if past_only else 0
    for place, slot in enumerate(slots.SLOTS):
        quantizer = (
            SmoothedGroupQuantizer(bits, group, recent, seen[place].middle)
            if seen is not None
            else TokenGroupQuantizer(bits, group, recent)
        )
        slots.fill(slot, quantizer)


@torch.no_grad()
def as_deployed(block: nn.Module, learned: Reconstruction) -> None:
    """Give a block of the network that is being deployed what has been learned."""
    state, folded = learned.rounded(), learned.folded()
    layers = dict(block.named_modules())
    for name in {name.rpartition(".")[0] for name, own in learned.block.named_parameters() if own is not state[name]}:
        layer = layers[name]
        weight = state[f"{name}.weight"]
        if isinstance(layer, QuantLayer):
            set_deployed(layer, weight)
        else:
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        if (bias := folded.get(f"{name}.bias")) is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    if learned.kv is not None:
        slots = next(each for each in block.modules() if isinstance(each, KeyValueSlots))
        fill_cache(slots, learned.config.past_only, learned.kv, learned.seen)
        if learned.smooth:
            learned.set_cache(slots)
