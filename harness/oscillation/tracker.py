"""Oscillation tracking (Nagel et al. 2022, arXiv 2203.11086, section 2.3 and algorithm 1).

A weight oscillates at step t when its integer code changes against the direction of its previous change:
`d = k_t - k_{t-1} != 0` and `sign(d)` opposite to that of its last non-zero d. The first change never counts.
Trackers are updated after optimizer steps only, never by a forward pass, so evaluation cannot dilute them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.core.config_base import QuantizerConfig, quantizer_config
from harness.core.errors import UserError
from harness.oscillation.fused import tracker_pass
from harness.oscillation.model_layers import ModelLayers
from harness.quantization import WeightQuantizer, make_quantizer
from harness.quantization.layers import QuantLayer
from harness.records import schema

#: The averages are kept over a factor that falls by 1 - momentum per step, so a step touches only the weights that
#: oscillate; below this they are multiplied out. A power of two, far from the largest fp16.
SMALLEST_DECAY = 2.0**-8


class OscillationTracker:
    """Counts code changes and oscillations of every weight of a model's linear and convolution layers.

    A layer whose `weight_quantizer` slot is filled is watched on that quantizer's codes; any other on the codes
    that the default quantizer would give it at `bits`. Call `update()` after each optimizer step.

    bits: 2 to 8. momentum: of the frequency's moving average, in (0, 1). threshold: the frequency above which a
    weight counts as oscillating. Memory: 4 bytes per weight (int8 code and direction, fp16 frequency).
    fused: False for plain tensor operations; otherwise one pass over all weights where there is one, with equal
    results (harness/kernels). Raises UserError where there is nothing to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
        exclude: str | Iterable[str] = (),
        momentum: float = 0.01,
        threshold: float = 0.02,
        fused: bool = True,
    ) -> None:
        if not 0 < momentum < 1:
            raise UserError(f"momentum: {momentum!r} is not between 0 and 1")
        config = quantizer_config(quantizer)
        self.threshold, self._momentum, self._decay = threshold, momentum, 1.0
        self._present = ModelLayers(model, exclude)
        self._watches = {
            name: _Watch(layer, make_quantizer(config, bits).fit(_effective(layer)))
            for name, layer in self._present.layers.items()
        }
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
        """The figures of the updates since the last reset, by metric name (harness/records/schema.py).

        Flips (code changes) and oscillations are per weight and period; frequency is the mean of the moving
        averages in [0, 1]; threshold distance is in steps, in [0, 1/2] but for clipped weights. reset: start
        a new period.
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
        """How many weights lie how far from their nearest decision threshold, by the bins of schema.THRESHOLD_EDGES."""
        counts = torch.stack([_histogram(watch.threshold_distance()) for watch in self._watches.values()])
        return [int(count) for count in counts.sum(0).tolist()]

    def frequencies(self) -> dict[str, Tensor]:
        """Each layer's oscillation frequencies, fp16, in [0, 1], in the shape of its weight (a copy)."""
        return {name: watch.frequency * self._decay for name, watch in self._watches.items()}

    def codes(self) -> dict[str, Tensor]:
        """Each layer's codes at the last update, int8, like its weight: the tracker's own tensors."""
        return {name: watch.code for name, watch in self._watches.items()}

    def scaled_frequencies(self) -> tuple[dict[str, Tensor], float]:
        """What `frequencies` multiplies: the tracker's own fp16 tensors, to be read only, and their common factor."""
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
    """The metrics of trackers by bit-width: all of the first, of further ones the totals, under names of their own."""
    own, *further = trackers.items()
    metrics: dict[str, Any] = {**own[1].metrics(), schema.THRESHOLD_HISTOGRAM: own[1].threshold_histogram()}
    for bits, tracker in further:
        totals = {name: value for name, value in tracker.metrics().items() if not name.startswith(schema.LAYER_PREFIX)}
        metrics |= {schema.watched_at(name, bits): value for name, value in totals.items()}
    return metrics


def _effective(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The weight that gets quantized."""
    return layer.effective_weight() if isinstance(layer, QuantLayer) else layer.weight


class _Watch:
    """The codes, last directions and frequencies (over the tracker's decay) of one layer's weights."""

    STATE: ClassVar[tuple[str, ...]] = ("code", "direction", "frequency", "flips", "oscillations")

    def __init__(self, layer: nn.Linear | nn.Conv2d, default: WeightQuantizer) -> None:
        self.layer = layer
        # Kept out of the model: watching a layer must not change its state dict.
        self.default = default.to(layer.weight.device)
        self.code = self.codes()
        self.direction = torch.zeros_like(self.code)
        self.frequency = torch.zeros_like(self.code, dtype=torch.float16)
        self.flips = torch.zeros((), dtype=torch.int64, device=self.code.device)
        self.oscillations = torch.zeros_like(self.flips)

    def read(self) -> tuple[WeightQuantizer, Tensor]:
        """The quantizer that decides the codes, and the weight that it sees."""
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
        """Take the present codes in, by plain tensor operations. increment: of an oscillating weight's frequency."""
        code = self.codes()
        if code.shape != self.code.shape:
            raise UserError(
                f"a weight that the tracker watches had shape {tuple(self.code.shape)} and has {tuple(code.shape)} now "
                f"({self.layer}): make a new tracker"
            )
        # In int8 throughout, comparisons viewed as int8: no difference of two codes has to fit a byte, and on CPUs
        # everything but conversions from bool runs vectorised.
        change = (code > self.code).view(torch.int8) - (code < self.code).view(torch.int8)
        reversal = (change * self.direction).clamp_(max=0).neg_()
        self.flips += change.count_nonzero()
        self.oscillations += reversal.count_nonzero()
        self.frequency.copy_(self.frequency.float() + reversal.float() * increment)  # one rounding, not two
        self.direction.add_(change, alpha=2).sign_()  # the new direction, or the old one
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
    # Zero and the largest weight are half a step away but for rounding, and not clipped.
    clipped = ~(distance <= edges[-2] + 1e-3)  # a weight that is not a number among them
    bin_of = (distance * ((bins - 1) / edges[-2])).long().clamp_(max=bins - 2)
    bin_of[clipped] = bins - 1
    return torch.bincount(bin_of.flatten(), minlength=bins)
