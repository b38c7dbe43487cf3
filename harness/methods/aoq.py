"""Allowing oscillation quantization (AOQ). W. Xie, Meng, Ma, Guo, H. Li, Qin, Fang, Y. Li, ICCV 2025 (code muzenc/AOQ).

Quantization-aware training that first makes weights oscillate, to explore, and later stops them. Decision thresholds
and levels have a step each; with b bits and n = 2^(b-1), of a layer's weight w, (O, I) or (O, I, kh, kw),

    thresholds  a s0 j, |j| < n,        levels  a s_le (k + 1/2), k = -n, ..., n - 1,        s0 = std(w) / 2^(b-2)

with the standard deviation before training (from scratch, that of the initialization): at 2 bits thresholds
a s0 {-1, 0, 1} and levels a s_le {+-1/2, +-3/2}. The gradient passes to w unchanged everywhere, no weight is clipped;
to s_le it comes through the levels, not scaled. e goes from 0 to 1:

    1   e < explore             s_le = s0, a = shrink_to + (1 - shrink_to) (1 + cos(pi j / updates)) / 2, with j the
                                whole part of updates e / explore: from 1 down, so that more weights lie near thresholds
    2   explore <= e            a = shrink_to to the end, so thresholds rest; s_le learns from now on
    3   settle <= e, as well    add pull sum_l || w_l - sg[a s0 (k + 1/2)] || to the loss, the norm and not its square,
                                over layers l: each weight is drawn to the middle of its bin between thresholds,
                                wherever its level is

teacher: `none` learns from labels, as all methods here do. `initial` is the paper's loss, KL(teacher || network) alone,
batch mean, in place of the labels; the teacher is the network before training, in float and in evaluation mode, so it
means something with `init: checkpoint:...` or `init: pretrained` (the paper's is a larger, trained one).
`train/penalty` is then the KL (and the pull) less `train/loss`, which stays the labels', as does what other methods of
a stack see of the task loss.

Deployed at the target bit by these thresholds and levels. At others `keep_step` keeps a s0 and a s_le, `keep_range`
divides both by 2 a bit, as s0 does, and `recalibrate` and "float" see the latent weights. a and s0 are buffers.
Per-channel granularity gives each output channel its own s0 and s_le, one a for all. The grid has no zero: a layer of
zeros has s0 = s_le = 1e-5, so it gives next to nothing, and learns little, until s_le does; equal weights take their
magnitude for std. `freezing` and `dampening`, which need integer codes times a step, are refused after it. Only an
epoch of the last stage counts as best (stage 2 with pull 0).

Sources: the released code for all of the above at 2 bits, with the stages at 50 and 150 of 250 epochs, a set every 5
epochs, 0.3, 0.01; s_le at the weights' learning rate. Recipe: Adam 1e-3 with linear decay to 0 (here: cosine), 250
epochs on CIFAR, weight decay 0. Their ImageNet script never advances the epoch that the stages go by, so as released it
stays at a = 1 in stage 1. Reconstructed: other bits (the code has the 2-bit grid written out), and the cut into
fractions. Deviations: weights only, first and last layers too (theirs: learned activation thresholds, first and last
float); labels unless `teacher` says so; s_le learns as soon as a is at its end (theirs an epoch later), and stays at
1e-5 or more; no weight decay for s_le; a weight shared by layers is pulled once, a frozen one not at all.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from harness.methods.base import Calibration, Context, Method, MethodConfig, Step
from harness.quantization import DecoupledQuantizer
from harness.quantization.deploy import round_to_nearest
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.slots import Slotted

#: Where a stage begins is a product of floats: an index so little before it is there.
SLACK = 1e-9


class AllowingOscillation(Method):
    """Trains through decoupled thresholds and levels: a shrinking grid, then learned levels, then a pull to bins."""

    kind, acts_on = "QAT", "weights"

    class Config(MethodConfig):
        name: Literal["aoq"] = "aoq"
        explore: float = Field(
            0.2,
            ge=0,
            lt=1,
            description="the part of training in which the grid shrinks (released code: 50 of 250 epochs)",
        )
        settle: float = Field(
            0.6,
            ge=0,
            lt=1,
            description="the part of training before the pull sets in (released code: 150 of 250 epochs)",
        )
        shrink_to: float = Field(0.3, ge=0.01, le=1, description="a at the end of `explore`, from 1 (released code)")
        updates: int = Field(10, ge=1, le=1000, description="how often a changes meanwhile (released code: 10 times)")
        pull: float = Field(0.01, ge=0, le=1e6, description="factor of the distances to bin centres (released code)")
        step_learning_rate: float = Field(
            1.0, ge=0, le=100, description="the level steps' over the run's (released: 1)"
        )
        teacher: Literal["none", "initial"] = Field(
            "none", description="learn from labels, or from the float network before training (paper: a trained one)"
        )

        @model_validator(mode="after")
        def _stages_in_order(self) -> Self:
            if self.settle < self.explore:
                raise ValueError(f"settle ({self.settle:g}) must not come before explore ({self.explore:g}) ends")
            return self

    config: Config

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.selection_start = config.settle if config.pull else config.explore
        self._teacher: nn.Module | None = None
        self._shrink = math.nan  # what the quantizers were last set to

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(explore=0.3, settle=0.6, updates=2, pull=1.0)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        # Before the slots are filled. Outside the model, and in no checkpoint: the same weights make it anew.
        self._teacher = float_copy(model, self.context.exclude) if self.config.teacher == "initial" else None
        per_channel = self.context.quantizer.granularity == "channel"
        self._layers: dict[str, QuantLayer] = attach(
            model,
            self.context.exclude,
            weight_quantizer=lambda layer: DecoupledQuantizer(self.context.bits(), per_channel).fit(
                layer.effective_weight()
            ),
        )

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        if name.endswith("weight_quantizer.level_step"):
            return {"lr": self.config.step_learning_rate, "weight_decay": 0.0}
        return {}

    def on_step_start(self, step: Step) -> None:
        shrink = self.shrink_at(step.index, step.total)
        if shrink != self._shrink:
            for quantizer in self._quantizers():
                quantizer.shrink.fill_(shrink)
            self._shrink = shrink

    def shrink_at(self, index: int, total: int) -> float:
        """The factor a of the grid at a step."""
        config, stage = self.config, self.config.explore * total
        done = config.updates
        if index < stage:
            done = math.floor(config.updates * index / stage + SLACK)
        return config.shrink_to + (1 - config.shrink_to) * (1 + math.cos(math.pi * done / config.updates)) / 2

    def penalty(self, step: Step) -> Tensor | float:
        total: Tensor | float = 0.0
        if self._teacher is not None:
            assert step.inputs is not None
            assert step.logits is not None
            assert step.task_loss is not None
            total = distillation(self._teacher, step.inputs, step.logits) - step.task_loss
        if self.config.pull and _reached(self.config.settle, step):
            total = total + self.config.pull * self._distance()
        return total

    def after_backward(self, step: Step) -> float:
        if not _reached(self.config.explore, step):
            for quantizer in self._quantizers():
                quantizer.level_step.grad = None  # not 0, by which momentum and decay would move it all the same
        return 0.0

    def after_step(self, step: Step) -> None:
        for quantizer in self._quantizers():
            quantizer.project()

    def metrics(self) -> dict[str, float]:
        """The factor a, and how far the levels have spread over the thresholds: the mean s_le / s0."""
        ratios = [(each.level_step.detach() / each.threshold_step).mean() for each in self._quantizers()]
        return {"aoq/shrink": float(self._quantizers()[0].shrink), "aoq/level_ratio": float(torch.stack(ratios).mean())}

    def _distance(self) -> Tensor | float:
        """The sum over layers of the norm of what separates weights from their bins' centres, shape ()."""
        # By identity: a shared weight counts once.
        layers = {id(layer.weight): layer for layer in self._layers.values() if layer.weight.requires_grad}
        total: Tensor | float = 0.0
        for layer in layers.values():
            weight = layer.effective_weight()
            total = total + torch.linalg.vector_norm(weight - self._of(layer).centres(weight))
        return total

    def _quantizers(self) -> list[DecoupledQuantizer]:
        return [self._of(layer) for layer in self._layers.values()]

    @staticmethod
    def _of(layer: QuantLayer) -> DecoupledQuantizer:
        assert isinstance(layer.weight_quantizer, DecoupledQuantizer)
        return layer.weight_quantizer


def _reached(fraction: float, step: Step) -> bool:
    """Whether a step is past a fraction of training."""
    return step.index >= fraction * step.total - SLACK


def float_copy(model: nn.Module, exclude: tuple[str, ...] = ()) -> nn.Module:
    """A frozen copy of a model that computes as it does without its quantizers, in evaluation mode."""
    copy = round_to_nearest(deepcopy(model), "float", exclude=exclude).eval().requires_grad_(False)
    for module in copy.modules():
        if isinstance(module, Slotted):
            module.add_slots()  # the slots of weights are empty by now, those of activations may not be
    return copy


def distillation(teacher: nn.Module, inputs: Tensor, logits: Tensor) -> Tensor:
    """KL(teacher || student), in nats, the mean over a batch, shape (). logits: the student's, (B, classes) fp32."""
    with torch.no_grad():
        target = functional.log_softmax(teacher(inputs).float(), dim=1)
    own = functional.log_softmax(logits, dim=1)
    return functional.kl_div(own, target, reduction="batchmean", log_target=True)
