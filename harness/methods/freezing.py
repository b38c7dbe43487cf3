"""Iterative weight freezing. Nagel, Fournarakis, Bondarenko, Blankevoort, ICML 2022 (arXiv 2203.11086, section 4.2).

Freezes each weight that oscillates too often at the integer code that it had most of the time.

Equations. After each optimizer step t, for every weight, with the integer code k = q(w) / s and a momentum m:

    E <- m k + (1 - m) E        f <- m o + (1 - m) f        if f > f_th(t): frozen from now on at round(E)

o = 1 if the code changed in the direction opposite to its last change, else 0 (oscillation/tracker.py). E, f and codes
have the shape of the weight, (O, ...). With T steps in total, nothing is frozen before t0 = start T; then

    f_th(t) = threshold + (threshold_start - threshold) / 2 * (1 + cos(pi (t - t0) / (T - t0))).

The quantizer returns `s round(E)` for a frozen weight, with the current step s, which therefore still learns through
it. The latent weight has no gradient and no effect.

Stacks: it wraps the quantizer in each layer's slot, so it comes after the method that put it there: [lsq, freezing],
[ste, freezing]. An empty slot gets the default quantizer, as with `ste`.

Deployment: at the target bit the frozen integers. At other bit-widths `deploy.scale` decides, as for a learned step:
keep_step and keep_range use what was learned, so frozen weights are rounded to the other grid from `s round(E)`;
recalibrate rounds all latent weights, and "float" deploys the latent weights.

Defaults: thresholds and start of the released code (Qualcomm-AI-research/oscillations-qat) for 4 bits. `momentum` is
the default of its class, 0.01. The 0.001 of its scripts needs about 3 / m = 3000 steps before E and f are meaningful,
and thresholds should be at least 2 to 3 m. Runs of a few hundred steps with 0.001 froze weights at the wrong code;
short runs should keep 0.01, with a `threshold` of 0.02 to 0.05.

Deviations: E and f start at step 0, not when freezing sets in (theirs freezes weights at the code that they happen to
have then); a weight freezes at E after this step's update (theirs: before); both averages follow optimizer steps, never
forward passes of an evaluation; all layers are tracked (theirs: those of 4 bits or fewer); latent weights are not held
where they froze. The last makes no difference at the target bit, except for a max-abs step, which still follows the
largest latent weights.
"""

import math
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.methods.base import Calibration, Context, Method, MethodConfig, Step, default_quantizer
from harness.oscillation.tracker import OscillationTracker
from harness.quantization import FrozenQuantizer, WeightQuantizer
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.slots import SlotTakenError, Unfilled


class Freezing(Method):
    """Freezes each weight that oscillates too often at the code that it had most of the time."""

    kind, acts_on = "QAT", "weights"
    refuses_norms = ""

    class Config(MethodConfig):
        name: Literal["freezing"] = "freezing"
        threshold: float = Field(0.01, gt=0, le=1, description="frequency that freezes, at the end (released code)")
        threshold_start: float = Field(0.1, gt=0, le=1, description="the same when freezing sets in (released code)")
        start: float = Field(0.25, ge=0, lt=1, description="fraction of training before freezing sets in (released)")
        momentum: float = Field(
            0.01,
            gt=0,
            le=0.9,
            description="of the averages of codes and frequencies; 0.001 (released scripts) needs over 3000 steps",
        )

    config: Config

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        # Earlier epochs train by the other methods of the stack alone, so they do not count for this method.
        self.selection_start = config.start

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(threshold=0.05, momentum=0.3)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        self._layers: dict[str, QuantLayer] = attach(model, self.context.exclude)
        for name, layer in self._layers.items():
            effective = layer.effective_weight().detach()
            layer.weight_quantizer = FrozenQuantizer(self._below(name), effective, self.context.fused)
        quantizer, excluded = self.context.quantizer, self.context.exclude
        self._tracker = OscillationTracker(
            model, self.context.bits(), quantizer, excluded, self.config.momentum, fused=self.context.fused
        )
        self._averages: dict[str, Tensor] = {name: codes.float() for name, codes in self._tracker.codes().items()}

    def after_step(self, step: Step) -> None:
        self._tracker.update()
        threshold = self.threshold_at(step.index, step.total)
        codes, (frequencies, decay) = self._tracker.codes(), self._tracker.scaled_frequencies()
        for name, average in self._averages.items():
            self._quantizer(name).settle(
                codes[name], average, self.config.momentum, frequencies[name], decay, threshold
            )

    def threshold_at(self, index: int, total: int) -> float | None:
        """The frequency above which a weight freezes after a step; None before `start`."""
        first, end = self.config.start * total, self.config.threshold
        if index < first:
            return None
        done = min(1.0, (index - first) / (total - first))
        return end + 0.5 * (self.config.threshold_start - end) * (1 + math.cos(math.pi * done))

    def state_dict(self) -> dict[str, Any]:
        return {"tracker": self._tracker.state_dict(), "averages": {k: v.clone() for k, v in self._averages.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tracker.load_state_dict(state["tracker"])
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])

    def metrics(self) -> dict[str, float]:
        frozen = torch.stack([self._quantizer(name).frozen.sum() for name in self._layers]).sum()
        return {"freezing/frozen_fraction": float(frozen) / sum(each.numel() for each in self._averages.values())}

    def _quantizer(self, name: str) -> FrozenQuantizer:
        return cast(FrozenQuantizer, self._layers[name].weight_quantizer)

    def _below(self, name: str) -> WeightQuantizer:
        """The quantizer in a layer's slot, or the default one if the slot is empty."""
        layer = self._layers[name]
        present: nn.Module = layer.weight_quantizer
        if isinstance(present, Unfilled):
            return default_quantizer(layer, self.context)
        if isinstance(present, WeightQuantizer) and type(present).step is not WeightQuantizer.step:
            with torch.no_grad():
                weight = layer.effective_weight()
                if torch.allclose(present.step(weight) * present.codes(weight), present(weight)):
                    return present
        raise SlotTakenError(
            f"methods: 'freezing' holds integer codes times a step, and {type(present).__name__} of layer {name!r} "
            "gives something else; stack it on a method whose levels are whole steps"
        )
