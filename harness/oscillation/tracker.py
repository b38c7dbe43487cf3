"""Oscillation tracking (Nagel et al. 2022, arXiv 2203.11086, section 2.3 and algorithm 1).

A weight oscillates at step t when its integer code changes against the direction of its previous change:
`d = k_t - k_{t-1} != 0` and `sign(d)` is opposite to that of its last non-zero d. The first change never counts.
Trackers are updated after optimizer steps only, never by a forward pass, so evaluation cannot dilute them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.core.config_base import QuantizerConfig, section
from harness.core.errors import UserError
from harness.oscillation.fused import tracker_pass
from harness.oscillation.model_layers import ModelLayers
from harness.quantization import WeightQuantizer, make_quantizer
from harness.quantization.layers import QuantLayer, WeightLayer
from harness.records import schema

#: Frequencies are stored divided by a common decay, which is multiplied by 1 - momentum at each step, so that a step
#: changes only the weights that oscillate. When the decay falls below this value, it is multiplied into the frequencies
#: and set to 1. A power of two; stored values stay far below the largest fp16.
SMALLEST_DECAY = 2.0**-8


class OscillationTracker:
    """Counts code changes and oscillations of every weight of a model's linear and convolution layers.

    With `quantizer={"norms": "quantized"}` norm layers count, too, as do those to which `attach` gave slots.

    A layer with a filled `weight_quantizer` slot is watched by the codes of that quantizer, any other layer by the
    codes of the default quantizer at `bits`. Call `update()` after each optimizer step.

    bits: 2 to 8; None: layers without a quantizer of their own are not watched. momentum: of the frequency's moving
    average, in (0, 1). threshold: the frequency above which a weight counts as oscillating. Memory: 4 bytes per weight
    (int8 code and direction, fp16 frequency).
    fused: False for plain tensor operations; otherwise a fused pass over all weights where there is one, with equal
    results (harness/kernels). Raises UserError for other bits, and for a model without layers to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int | None = None,
        quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
        exclude: str | Iterable[str] = (),
        momentum: float = 0.01,
        threshold: float = 0.02,
        fused: bool = True,
    ) -> None:
        if not 0 < momentum < 1:
            raise UserError(f"momentum: {momentum!r} is not between 0 and 1")
        config = section(quantizer, QuantizerConfig, "quantizer")
        self.threshold, self._momentum, self._decay = threshold, momentum, 1.0
        self._present = ModelLayers(model, exclude, config.quantizes_norms)
        self._watches = {
            name: _Watch(layer, make_quantizer(config, own, layer=layer).fit(_effective(layer)))
            for name, layer in self._present.layers.items()
            if (own := bits if bits is not None else _own_bits(layer)) is not None
        }
        if not self._watches and self._present.layers:
            raise UserError("bits: no layer has a quantizer of its own by which it could be watched; give bits, 2 to 8")
        if not self._watches:
            raise UserError("the tracker finds no linear or convolution layer in this model")
        self._pass = tracker_pass(self._watches.values(), fused)

    @torch.no_grad()
    def update(self) -> None:
        """Compare the weights with those at the last update. No host synchronisation.

        Warns of a layer that was put into the model later: only a new tracker would watch it.
        """
        self._present.refresh("this tracker does not watch it; make a new one")
        self._decay *= 1 - self._momentum
        increment = self._momentum / self._decay
        added = torch.tensor(increment)
        for watch in self._pass.update(list(self._watches.values()), increment):
            watch.advance(added)
        if self._decay < SMALLEST_DECAY:
            for watch in self._watches.values():
                watch.frequency.mul_(self._decay)
            self._decay = 1.0

    @torch.no_grad()
    def metrics(self, reset: bool = True) -> dict[str, float]:
        """The metrics of all updates since the last reset, by name (harness/records/schema.py).

        Flips (code changes) and oscillations are per weight and period; frequency is the mean of the moving averages,
        in [0, 1]; threshold distance is in steps, in [0, 1/2] except for clipped weights. reset: start a new period.
        """
        watches = self._watches.values()
        sums = torch.stack([watch.summary(self.threshold, self._decay) for watch in watches]).tolist()
        weights = sum(watch.frequency.numel() for watch in watches)
        totals = [sum(column) / weights for column in zip(*sums, strict=True)]
        names = (
            schema.FLIPS_PER_WEIGHT,
            schema.OSCILLATIONS_PER_WEIGHT,
            schema.FREQUENCY,
            schema.OSCILLATING_FRACTION,
            schema.THRESHOLD_DISTANCE,
        )
        result = dict(zip(names, totals, strict=True))
        for (name, watch), row in zip(self._watches.items(), sums, strict=True):
            result[schema.layer_frequency(name)] = row[2] / watch.frequency.numel()
        if reset:
            for watch in watches:
                watch.flips.zero_()
                watch.oscillations.zero_()
        return result

    @torch.no_grad()
    def threshold_histogram(self) -> list[int]:
        """Numbers of weights by distance to the nearest decision threshold, in the bins of schema.THRESHOLD_EDGES."""
        counts = torch.stack([_histogram(watch.threshold_distance()) for watch in self._watches.values()])
        return [int(count) for count in counts.sum(0).tolist()]

    def frequencies(self) -> dict[str, Tensor]:
        """Each layer's oscillation frequencies, fp16, in [0, 1], in the shape of its weight (a copy)."""
        return {name: watch.frequency * self._decay for name, watch in self._watches.items()}

    def codes(self) -> dict[str, Tensor]:
        """Each layer's codes at the last update, int8, shape of its weight: the tracker's own tensors, not copies."""
        return {name: watch.code for name, watch in self._watches.items()}

    def scaled_frequencies(self) -> tuple[dict[str, Tensor], float]:
        """The factors of `frequencies`: the tracker's own fp16 tensors (read only) and the common decay."""
        return {name: watch.frequency for name, watch in self._watches.items()}, self._decay

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All state, by layer name; tensors only."""
        decay = torch.tensor(self._decay, dtype=torch.float64)
        return {
            name: {"decay": decay, **{field: getattr(watch, field).clone() for field in _Watch.STATE}}
            for name, watch in self._watches.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from `state_dict()`. Raises KeyError when the layers differ."""
        for name, watch in self._watches.items():
            for field in _Watch.STATE:
                getattr(watch, field).copy_(state[name][field])
            self._decay = float(state[name]["decay"])  # one for all layers


def metrics_of(trackers: Mapping[int, OscillationTracker]) -> dict[str, Any]:
    """The metrics of trackers: all of the first one; of the others the totals, under names with their bit-width."""
    own, *further = trackers.items()
    metrics: dict[str, Any] = {**own[1].metrics(), schema.THRESHOLD_HISTOGRAM: own[1].threshold_histogram()}
    for bits, tracker in further:
        totals = {name: value for name, value in tracker.metrics().items() if not name.startswith(schema.LAYER_PREFIX)}
        metrics |= {schema.watched_at(name, bits): value for name, value in totals.items()}
    return metrics


def _effective(layer: WeightLayer) -> Tensor:
    """The weight that gets quantized."""
    return layer.effective_weight() if isinstance(layer, QuantLayer) else layer.weight


def _own_bits(layer: WeightLayer) -> int | None:
    """The bits of a layer's own quantizer; None where it has none."""
    own = getattr(layer, "weight_quantizer", None)
    return own.bits if isinstance(own, WeightQuantizer) else None


class _Watch:
    """The codes, last directions and frequencies (divided by the tracker's decay) of one layer's weights."""

    STATE: ClassVar[tuple[str, ...]] = ("code", "direction", "frequency", "flips", "oscillations")

    def __init__(self, layer: WeightLayer, default: WeightQuantizer) -> None:
        self.layer = layer
        # Kept outside the model: watching a layer must not change its state dict.
        self.default = default.to(layer.weight.device)
        self.code = self.codes()
        self.direction = torch.zeros_like(self.code)
        self.frequency = torch.zeros_like(self.code, dtype=torch.float16)
        self.flips = torch.zeros((), dtype=torch.int64, device=self.code.device)
        self.oscillations = torch.zeros_like(self.flips)

    def read(self) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer that determines the codes, and its input, the effective weight."""
        own = self.layer.weight_quantizer if isinstance(self.layer, QuantLayer) else None
        return (own if isinstance(own, WeightQuantizer) else self.default), _effective(self.layer)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The weights' codes now, int8."""
        quantizer, weight = self.read()
        return quantizer.codes(weight)

    def threshold_distance(self) -> Tensor:
        """The weights' distances to their nearest decision thresholds, in steps."""
        quantizer, weight = self.read()
        return quantizer.threshold_distance(weight)

    def advance(self, increment: Tensor) -> None:
        """Update the state with the present codes, by plain operations. increment: for weights that oscillate."""
        code = self.codes()
        if code.shape != self.code.shape:
            raise UserError(
                f"a weight that the tracker watches had shape {tuple(self.code.shape)} and has {tuple(code.shape)} now "
                f"({self.layer}): make a new tracker"
            )
        # Comparisons viewed as int8: a difference of two codes may not fit int8, and on CPUs all operations except
        # conversions from bool are vectorised.
        change = (code > self.code).view(torch.int8) - (code < self.code).view(torch.int8)
        reversal = (change * self.direction).clamp_(max=0).neg_()
        self.flips += change.count_nonzero()
        self.oscillations += reversal.count_nonzero()
        self.frequency.copy_(self.frequency.float() + reversal.float() * increment)  # rounds once, not twice
        self.direction.add_(change, alpha=2).sign_()  # the new direction if there is a change
        self.code.copy_(code)

    def summary(self, threshold: float, decay: float) -> Tensor:
        """(5,) sums over the weights: flips, oscillations, frequency, oscillating, threshold distance."""
        frequency = self.frequency.float() * decay
        distance = self.threshold_distance()
        sums = (self.flips, self.oscillations, frequency.sum(), (frequency > threshold).sum(), distance.sum())
        return torch.stack([value.double() for value in sums])


def _histogram(distance: Tensor) -> Tensor:
    """Counts of distances in steps, int64 (bins,), by schema.THRESHOLD_EDGES; clipped weights in the last bin."""
    edges, bins = schema.THRESHOLD_EDGES, len(schema.THRESHOLD_EDGES) - 1
    # Slack: a weight of 0 and the largest weight are half a step away up to rounding, and are not clipped.
    clipped = ~(distance <= edges[-2] + 1e-3)  # includes NaN
    bin_of = (distance * ((bins - 1) / edges[-2])).long().clamp_(max=bins - 2)
    bin_of[clipped] = bins - 1
    return torch.bincount(bin_of.flatten(), minlength=bins)
