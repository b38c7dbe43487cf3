"""Oscillation tracking (Nagel et al. 2022, arXiv 2203.11086, section 2.3 and algorithm 1).

A weight oscillates at step t when its integer code changes against the direction of its previous change:
`d = k_t - k_{t-1} != 0` and `sign(d)` opposite to that of its last non-zero d. The first change never counts.
Trackers are updated after optimizer steps only, never by a forward pass, so evaluation cannot dilute them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from harness import schema
from harness.errors import UserError
from harness.knobs import QuantizerKnobs
from harness.layers import QuantLayer, weight_layers
from harness.quantization import WeightQuantizer, make_quantizer
from harness.quantization.grid import safe_step


class OscillationTracker:
    """Counts code changes and oscillations of every weight of a model's linear and convolution layers.

    A layer whose `weight_quantizer` slot is filled is watched on that quantizer's codes; any other on the codes
    that the default quantizer would give it at `bits`. Call `update()` after each optimizer step.

    bits: 2 to 8. momentum: of the frequency's moving average, in (0, 1). threshold: the frequency above which a
    weight counts as oscillating. Memory: 4 bytes a weight (int8 code and direction, fp16 frequency, which at the
    default momentum stops rising at 0.97 and falling at 3e-6). Raises UserError where there is nothing to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        quantizer: QuantizerKnobs | None = None,
        exclude: Iterable[str] = (),
        momentum: float = 0.01,
        threshold: float = 0.02,
    ) -> None:
        if not 0 < momentum < 1:
            raise UserError(f"momentum: {momentum!r} is not between 0 and 1")
        knobs = quantizer or QuantizerKnobs()
        self.threshold = threshold
        self._watches = {
            name: _Watch(layer, make_quantizer(knobs, bits).fit(layer.weight), momentum)
            for name, layer in weight_layers(model, exclude).items()
        }
        if not self._watches:
            raise UserError("the tracker finds no linear or convolution layer in this model")

    @torch.no_grad()
    def update(self) -> None:
        """Compare the weights with those at the last update. No host synchronisation."""
        for watch in self._watches.values():
            watch.update()

    @torch.no_grad()
    def metrics(self, reset: bool = True) -> dict[str, float]:
        """The figures of the updates since the last reset, by metric name (harness/schema.py).

        Flips (code changes) and oscillations are per weight and period; frequency is the mean of the moving
        averages in [0, 1]; threshold distance is in steps, in [0, Q - 1/2]. reset: start a new period.
        """
        watches = self._watches.values()
        sums = torch.stack([watch.summary(self.threshold) for watch in watches]).tolist()
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

    def frequencies(self) -> dict[str, Tensor]:
        """Each layer's oscillation frequencies, fp16, in [0, 1], in the shape of its weight (a copy)."""
        return {name: watch.frequency.clone() for name, watch in self._watches.items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All state, by layer name; tensors only."""
        return {
            name: {field: getattr(watch, field).clone() for field in _Watch.STATE}
            for name, watch in self._watches.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continue from `state_dict()`. Raises KeyError when the layers differ."""
        for name, watch in self._watches.items():
            for field in _Watch.STATE:
                getattr(watch, field).copy_(state[name][field])


class _Watch:
    """The codes, last directions and frequencies of one layer's weights."""

    STATE = ("code", "direction", "frequency", "flips", "oscillations")

    def __init__(self, layer: nn.Linear | nn.Conv2d, default: WeightQuantizer, momentum: float) -> None:
        self.layer, self.momentum = layer, momentum
        # Kept out of the model: watching a layer must not change its state dict.
        self.default = default.to(layer.weight.device)
        self.code = self._quantizer_and_weight(lambda quantizer, weight: quantizer.codes(weight))
        self.direction = torch.zeros_like(self.code)
        self.frequency = torch.zeros_like(self.code, dtype=torch.float16)
        self.flips = torch.zeros((), dtype=torch.int64, device=self.code.device)
        self.oscillations = torch.zeros_like(self.flips)

    @torch.no_grad()
    def _quantizer_and_weight(self, read: Callable[[WeightQuantizer, Tensor], Tensor]) -> Tensor:
        if not isinstance(self.layer, QuantLayer):
            return read(self.default, self.layer.weight)
        own = self.layer.weight_quantizer
        weight = self.layer.weight_transform(self.layer.weight)
        return read(own if isinstance(own, WeightQuantizer) else self.default, weight)

    def update(self) -> None:
        code = self._quantizer_and_weight(lambda quantizer, weight: quantizer.codes(weight))
        # In int8 throughout, comparisons viewed as int8: no difference of two codes has to fit a byte, and on CPUs
        # everything but conversions from bool runs vectorised.
        change = (code > self.code).view(torch.int8) - (code < self.code).view(torch.int8)
        reversal = (change * self.direction).clamp_(max=0).neg_()
        self.flips += change.count_nonzero()
        self.oscillations += reversal.count_nonzero()
        self.frequency.lerp_(reversal.to(torch.float16), self.momentum)  # one rounding, not two
        self.direction = self.direction.add_(change, alpha=2).sign_()  # the new direction, or the old one
        self.code = code

    def summary(self, threshold: float) -> Tensor:
        """(5,) sums over the weights: flips, oscillations, frequency, oscillating, threshold distance."""
        frequency = self.frequency.float()
        distance = self._quantizer_and_weight(_threshold_distance)
        sums = (self.flips, self.oscillations, frequency.sum(), (frequency > threshold).sum(), distance.sum())
        return torch.stack([value.double() for value in sums])


def _threshold_distance(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """How far each weight is from the nearest decision threshold (k + 1/2) s, in steps; same shape."""
    scaled = weight / safe_step(quantizer.step(weight))
    low, high = quantizer.levels
    return (scaled - (scaled.floor().clamp(low, high - 1) + 0.5)).abs()
