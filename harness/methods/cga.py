"""Confidence-guided annealing (CGA). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free Quantization for
Low-bit Vision Transformers").

The last stage of quantization-aware training: only weights next to a decision threshold may move, so that they settle
while nothing else disturbs them. At each step from `start` on, before the optimizer moves the weights,

    held = threshold distance of the effective weight > boundary        (in bins, as the layer's quantizer tells it)

in the shape of the weight, (O, I) or (O, I, kh, kw). Held weights have their gradient set to 0 before the optimizer's
step and their value put back after it, so neither momentum nor weight decay moves them; the others train on. Clipped
weights beyond the outermost threshold are held too. Nothing is sticky: the next step decides anew, since ranges move
with weights and learned steps. Norms, biases, learned steps and layers without a quantizer train on all the time.

It works on any quantizer that tells threshold distances and comes after it, best as the last of a stack: [statsq,
cga], [lsq, cga]. Gradients that a later method adds in its after_backward reach momentum buffers, though no held
weight. An empty slot gets the default quantizer, as `ste` would fill it. Clipping (`train.clip_norm`) counts only the
gradient of what trains.

Layers whose weight_transform does more than change each entry by itself (a product of two matrices) have no entry of
the weight for an entry of the grid, also where shapes happen to agree: they are left alone and train on. Transforms
entry by entry (tanh) are served. Which is which is found by changing half of a random weight. A weight that layers
share is held only where all of them are confident, and left alone unless `layers` names them all.

Learning rate: the paper anneals at its lowest, 1e-5 (inferred from its scheduler; 5.47e-4 at most). `train.schedule:
cosine` comes close by itself: at the default `start` it is at 0.020 of the run's rate and averages 0.0068 from then
on, 1.1e-5 and 3.7e-6 for theirs. Exactly so it is a second run: `model.init` with the first one's weights, `start: 0`,
`learning_rate: 1e-5`, `schedule: constant` (learned steps then begin anew; StatsQ has none). At a rate that is high for
a band of 2 boundary, weights next to a threshold leave it by one step and are held where they land. A learned step
that trains on at such a rate takes its thresholds back and forth past held weights, whose codes then still change.

No epoch before `start` counts as best. cga/training_fraction: the part of its layers' weights that was not held at the
last step.

Defaults: boundary 0.005 (released code; 0.003 to 0.01 explored), start 300 / 330 (its scripts: 300 + 30 epochs).
Deviations: every quantized layer by default; the paper names fc1, fc2, proj and v, here `layers: ["*.mlp.fc*",
"*.attn.proj"]`, since v is a part of a fused qkv. Their code also means to hold the product of queries and keys, by a
detach that has no effect. Weights only, no distillation.
"""

from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError, unknown
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step, default_quantizer
from harness.quantization import WeightQuantizer
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.slots import SlotTakenError, Unfilled


class ConfidenceGuidedAnnealing(Method):
    """Lets only weights near a threshold train, in the last part of training."""

    kind, acts_on = "update rule", "weights"

    class Config(MethodConfig):
        name: Literal["cga"] = "cga"
        boundary: float = Field(
            0.005, ge=0, le=0.5, description="distance from a threshold, in bins, up to which a weight trains (paper)"
        )
        start: float = Field(
            300 / 330, ge=0, lt=1, description="the part of training before it begins (paper: 300 of 330 epochs)"
        )
        layers: tuple[str, ...] = Field(
            ("*",), min_length=1, description="globs of the layers it acts on (paper: fc1, fc2, proj, v)"
        )

    config: Config

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        # An epoch before it begins trains by the method below alone, so it does not count as one of this method.
        self.selection_start = config.start

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(boundary=0.1, start=0.2)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        for layer in attach(model, self.context.exclude).values():
            if isinstance(layer.weight_quantizer, Unfilled):
                layer.fill("weight_quantizer", default_quantizer(layer, self.context))

    def prepared(self, model: nn.Module) -> None:
        layers = attach(model, self.context.exclude)
        chosen = self._chosen(layers)
        sharing: dict[int, list[str]] = {}
        for name, layer in layers.items():
            sharing.setdefault(id(layer.weight), []).append(name)
        able = [
            names
            for names in sharing.values()
            if chosen.issuperset(names) and all(_entry_by_entry(layers[name]) for name in names)
        ]
        if not able:
            raise UserError(f"methods: 'cga' finds no layer among {sorted(chosen)} whose weights it could hold")
        for names in able:
            for name in names:
                _check_quantizer(name, layers[name])
        #: The layers of each weight, one but where a weight is shared.
        self._groups = [[layers[name] for name in names] for names in able]
        self._moments: list[tuple[Tensor, Tensor, Tensor]] = []  # of a step: weight, what is held of it, its value
        self._held = torch.zeros((), dtype=torch.int64, device=self._groups[0][0].weight.device)

    def after_backward(self, step: Step) -> float:
        if step.index < self.config.start * step.total:
            return 0.0
        with torch.no_grad():
            for layers in self._groups:
                weight, held = layers[0].weight, self._confident(layers)
                if weight.grad is not None:
                    weight.grad.masked_fill_(held, 0.0)
                self._moments.append((weight, held, weight.clone()))
            self._held = torch.stack([held.sum() for _, held, _ in self._moments]).sum()
        return 0.0

    def after_step(self, step: Step) -> None:
        with torch.no_grad():
            for weight, held, value in self._moments:
                weight.copy_(torch.where(held, value, weight))
        self._moments = []

    def state_dict(self) -> dict[str, Any]:
        return {"held": self._held.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._held = state["held"].to(self._held.device)

    def metrics(self) -> dict[str, float]:
        """The part of the weights of its layers that was not held at the last step."""
        weights = sum(layers[0].weight.numel() for layers in self._groups)
        return {"cga/training_fraction": 1 - int(self._held) / weights}

    def _chosen(self, layers: dict[str, QuantLayer]) -> set[str]:
        """The names that the setting `layers` matches."""
        chosen: set[str] = set()
        for pattern in self.config.layers:
            hits = {name for name in layers if fnmatchcase(name, pattern)}
            if not hits:
                raise unknown("layer in methods.cga.layers", pattern, layers)
            chosen |= hits
        return chosen

    def _confident(self, layers: list[QuantLayer]) -> Tensor:
        """Which entries of a weight all layers that share it hold, bool, like the weight."""
        held = torch.ones_like(layers[0].weight, dtype=torch.bool)
        for layer in layers:
            quantizer: Any = layer.weight_quantizer
            held &= quantizer.threshold_distance(layer.effective_weight()) > self.config.boundary
        return held


def _check_quantizer(name: str, layer: QuantLayer) -> None:
    kind: Any = type(layer.weight_quantizer)
    if issubclass(kind, WeightQuantizer):
        own = kind.threshold_distance is not WeightQuantizer.threshold_distance
        if own or kind.step is not WeightQuantizer.step:  # the default distance goes by the step
            return
    raise SlotTakenError(
        f"methods: 'cga' holds weights by their distance from a quantizer's thresholds, which {kind.__name__} of "
        f"layer {name!r} does not tell"
    )


def _entry_by_entry(layer: QuantLayer) -> bool:
    """Whether each entry of the effective weight depends on the same entry of the weight, and on no other."""
    if isinstance(layer.weight_transform, Unfilled):
        return True
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        values = torch.randn(layer.weight.shape, generator=generator)
        return torch.empty_like(layer.weight).copy_(values)  # in the weight's own order in memory

    with torch.no_grad():
        first, changed = drawn(), drawn() > 0
        second = torch.where(changed, drawn(), first)
        before, after = layer.weight_transform(first), layer.weight_transform(second)
    if before.shape != first.shape:
        return False
    return bool((before == after)[~changed].all())
