"""Confidence-guided annealing (CGA). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free Quantization for
Low-bit Vision Transformers").

The last stage of quantization-aware training: only weights close to a decision threshold are trained; all others are
held, so that the former can settle undisturbed.

Update rule. At each step from `start` on, before the optimizer step, in the shape of the weight, (O, I) or
(O, I, kh, kw):

    held = threshold distance of the effective weight > boundary       (in bins, from the layer's quantizer)

The gradient of held weights is set to 0 before the optimizer step and their value is restored after it, so neither
momentum nor weight decay moves them. Clipped weights beyond the outermost threshold are held too. The set is computed
again at each step, since ranges change with weights and learned steps. Norms, biases, learned steps and layers without
a quantizer are always trained. `train.clip_norm` counts only the gradient of what is trained.

Stacks: it works with any quantizer that gives threshold distances and comes after that method, best as the last of the
stack: [statsq, cga], [lsq, cga]. A gradient that a later method adds in its after_backward enters the momentum of held
weights, but does not move them. An empty slot gets the default quantizer, as with `ste`.

Layers: those whose weight_transform is element-wise (tanh), or empty. If an entry of the effective weight depends on
several entries of the weight (a product of two matrices), the layer is left alone and trains on, even if both shapes
agree. To find out, a random weight is drawn and half of its entries are changed: the transform is element-wise if the
other entries of its result stay the same. A weight that several layers share is held only where all of them hold it,
and is left alone unless `layers` matches all of them.

Learning rate: the paper anneals at its lowest rate, 1e-5 (inferred from its scheduler; the highest is 5.47e-4).
`train.schedule: cosine` comes close: at the default `start` it is at 0.020 of the run's rate and from there on 0.0068
on average, which with the paper's highest rate is 1.1e-5 and 3.7e-6. To anneal at exactly 1e-5, start a second run
with the weights of the first in `model.init`, `start: 0`, `learning_rate: 1e-5` and `schedule: constant`. Learned steps
are then initialized again (StatsQ has none). If the rate is too high for the band of width 2 * boundary around a
threshold, a weight leaves the band in one step and is held where it lands. A learned step that trains at such a rate
moves its thresholds back and forth across held weights, so their codes still change.

Selection and metrics: no epoch before `start` counts as best. cga/training_fraction is the fraction of weights, in the
layers that it acts on, that were not held at the last step.

Defaults: boundary 0.005 (released code; 0.003 to 0.01 was explored), start 300 / 330 (its scripts: 300 + 30 epochs).

Deviations: all quantized layers by default. The paper lists fc1, fc2, proj and v; here that is `layers: ["*.mlp.fc*",
"*.attn.proj"]`, since v is part of a fused qkv. The released code also intends to hold the product of queries and
keys, but the detach that it uses has no effect. No distillation.
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
            300 / 330, ge=0, lt=1, description="fraction of training before it begins (paper: 300 of 330 epochs)"
        )
        layers: tuple[str, ...] = Field(
            ("*",), min_length=1, description="globs of the layers it acts on (paper: fc1, fc2, proj, v)"
        )

    config: Config

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        # Earlier epochs train by the other methods of the stack alone, so they do not count for this method.
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
        #: The layers of each weight: one, or several that share it.
        self._groups = [[layers[name] for name in names] for names in able]
        self._moments: list[tuple[Tensor, Tensor, Tensor]] = []  # of this step: weight, mask, value
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
        """The fraction of weights, in its layers, that were not held at the last step."""
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
        """The entries of a weight that all layers sharing it hold; bool, shape of the weight."""
        held = torch.ones_like(layers[0].weight, dtype=torch.bool)
        for layer in layers:
            quantizer: Any = layer.weight_quantizer
            held &= quantizer.threshold_distance(layer.effective_weight()) > self.config.boundary
        return held


def _check_quantizer(name: str, layer: QuantLayer) -> None:
    kind: Any = type(layer.weight_quantizer)
    if issubclass(kind, WeightQuantizer):
        own = kind.threshold_distance is not WeightQuantizer.threshold_distance
        if own or kind.step is not WeightQuantizer.step:  # the default distance uses the step
            return
    raise SlotTakenError(
        f"methods: 'cga' needs the distance of weights from the quantizer's thresholds, which {kind.__name__} of "
        f"layer {name!r} does not give"
    )


def _entry_by_entry(layer: QuantLayer) -> bool:
    """Whether each entry of the effective weight depends on the same entry of the weight, and on no other."""
    if isinstance(layer.weight_transform, Unfilled):
        return True
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        values = torch.randn(layer.weight.shape, generator=generator)
        return torch.empty_like(layer.weight).copy_(values)  # in the memory layout of the weight

    with torch.no_grad():
        first, changed = drawn(), drawn() > 0
        second = torch.where(changed, drawn(), first)
        before, after = layer.weight_transform(first), layer.weight_transform(second)
    if before.shape != first.shape:
        return False
    return bool((before == after)[~changed].all())
