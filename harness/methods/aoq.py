"""Allowing oscillation quantization (AOQ). W. Xie, Meng, Ma, Guo, H. Li, Qin, Fang, Y. Li, ICCV 2025 (code muzenc/AOQ).

Quantization-aware training that first makes weights oscillate, to explore, and later stops the oscillation. Decision
thresholds and levels have separate steps.

Equations. With b bits and n = 2^(b-1), for the weight w of a layer, (O, I) or (O, I, kh, kw):

    thresholds  a s0 j, |j| < n        levels  a s_le (k + 1/2), k = -n, ..., n - 1        s0 = std(w) / 2^(b-2)

std(w) is computed once, before training (from scratch: of the initial weights). At 2 bits the thresholds are
a s0 {-1, 0, 1} and the levels a s_le {+-1/2, +-3/2}. The gradient of w is the straight-through one everywhere; no
weight is clipped. The gradient of s_le comes through the levels and is not rescaled.

Stages. Let e be the finished fraction of training:

    1   e < explore     s_le = s0, and a falls from 1 to shrink_to, so that more weights lie near thresholds:
                        a = shrink_to + (1 - shrink_to) (1 + cos(pi j / updates)) / 2,  j = floor(updates e / explore)
    2   explore <= e    a = shrink_to until the end, so the thresholds no longer move; s_le is trained from here on
    3   settle <= e     as stage 2, and the loss gets the term  pull sum_l || w_l - sg[a s0 (k + 1/2)] ||  over layers
                        l (the norm, not its square). It pulls each weight to the middle of its bin between thresholds,
                        wherever its level is.

`teacher`: `none` trains on the labels, as all methods here do. `initial` replaces the loss on the labels by the
paper's, KL(teacher || network), batch mean. This teacher is the network before training, in float and in evaluation
mode, so it is useful with `init: checkpoint:...` or `init: pretrained` (the paper's teacher is a larger, trained
network). `train/loss` stays the loss on the labels, and so does the task loss that other methods of the stack see;
`train/penalty` is the KL divergence (plus the pull) minus `train/loss`.

Activations, with a target such as w4a4: evenly spaced levels with learned thresholds for each input, as released
(N2UQ's quantizer, `LearnedThresholdQuantizer`), with the weights' learning rate. Released: unsigned only, from 2; here
the start is the range of least squared error in calibration, and inputs with negative values have the same form on
either side of 0.

Deployment: at the target bit these thresholds and levels. At other bit-widths `keep_step` keeps a s0 and a s_le, and
`keep_range` halves both for each further bit, as the formula of s0 does. `recalibrate` and "float" use the latent
weights. Only epochs of the last stage count as best (of stage 2 if pull is 0).

State: a and s0 are buffers. With per-channel granularity each output channel has its own s0 and s_le; a is common to
all. The grid has no zero: in an all-zero layer s0 = s_le = 1e-5, so its output is nearly 0 and it learns little before
s_le is trained. Where all weights are equal, their magnitude replaces std(w).

Stacks: `freezing` and `dampening` need integer codes times a step, so they are refused after this method.

Sources: the released code for all of the above at 2 bits. Its defaults: stages start at epochs 50 and 150 of 250, a
changes every 5 epochs, shrink_to 0.3, pull 0.01, and s_le has the weights' learning rate. Its recipe: Adam 1e-3 with
linear decay to 0 (here: cosine), 250 epochs on CIFAR, weight decay 0. Its ImageNet script never advances the epoch
that selects the stage, so as released it stays in stage 1 with a = 1. Reconstructed: bit-widths other than 2 (the code
has a hard-coded 2-bit grid), and stages as fractions of training.

Deviations: first and last layers included (theirs: float); labels unless `teacher` is set; s_le is trained as soon as a
reaches its final value (theirs: one epoch later) and is kept at 1e-5 or more; no weight decay on s_le; a weight shared
by layers is pulled once, a frozen one not at all.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.methods._inputs import quantize_in_training
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step
from harness.quantization import DecoupledQuantizer
from harness.quantization.deploy import round_rest
from harness.quantization.layers import QuantLayer, attach
from harness.quantization.learned_thresholds import LearnedThresholdQuantizer
from harness.quantization.slots import Slotted

#: Tolerance for the start of a stage, which is a product of floats.
SLACK = 1e-9
#: The ends of the names of parameters of activation quantizers.
_OF_INPUTS = ("_quantizer.gaps", "_quantizer.scale_in", "_quantizer.scale_out")


class AllowingOscillation(Method):
    """Trains through decoupled thresholds and levels: a shrinking grid, then learned levels, then a pull to bins."""

    kind, acts_on = "QAT", "weights"
    activations = "learned thresholds"

    class Config(MethodConfig):
        name: Literal["aoq"] = "aoq"
        explore: float = Field(
            0.2,
            ge=0,
            lt=1,
            description="fraction of training in which the grid shrinks (released code: 50 of 250 epochs)",
        )
        settle: float = Field(
            0.6,
            ge=0,
            lt=1,
            description="fraction of training before the pull sets in (released code: 150 of 250 epochs)",
        )
        shrink_to: float = Field(0.3, ge=0.01, le=1, description="a at the end of `explore`, from 1 (released code)")
        updates: int = Field(10, ge=1, le=1000, description="changes of a during `explore` (released code: 10)")
        pull: float = Field(0.01, ge=0, le=1e6, description="factor of the distances to bin centres (released code)")
        step_learning_rate: float = Field(
            1.0, ge=0, le=100, description="learning rate of s_le, as a multiple of the run's (released: 1)"
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
        self._shrink = math.nan  # the last value written to the quantizers

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(explore=0.3, settle=0.6, updates=2, pull=1.0)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        # Copied before the slots are filled. Not part of the model or a checkpoint: a resumed run makes the same copy.
        self._teacher = float_copy(model, self.context.exclude) if self.config.teacher == "initial" else None
        per_channel = self.context.quantizer.granularity == "channel"
        self._layers: dict[str, QuantLayer] = attach(
            model,
            self.context.exclude,
            weight_quantizer=lambda layer: DecoupledQuantizer(self.context.bits(), per_channel).fit(
                layer.effective_weight()
            ),
        )
        self._inputs = quantize_in_training(
            model, self.context, calibration, lambda bits, seen, site: LearnedThresholdQuantizer(bits).fit(seen)
        )

    def param_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, float]:
        if name.endswith("weight_quantizer.level_step"):
            return {"lr": self.config.step_learning_rate, "weight_decay": 0.0}
        return {"weight_decay": 0.0} if name.endswith(_OF_INPUTS) else {}

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
            assert step.outputs is not None
            assert step.task_loss is not None
            total = self._distillation(self._teacher, step.inputs, step.outputs) - step.task_loss
        if self.config.pull and _reached(self.config.settle, step):
            total = total + self.config.pull * self._distance()
        return total

    def after_backward(self, step: Step) -> float:
        if not _reached(self.config.explore, step):
            for quantizer in self._quantizers():
                quantizer.level_step.grad = None  # with a gradient of 0, momentum and decay would still move it
        return 0.0

    def after_step(self, step: Step) -> None:
        for quantizer in (*self._quantizers(), *self._inputs):
            assert isinstance(quantizer, DecoupledQuantizer | LearnedThresholdQuantizer)
            quantizer.project()

    def metrics(self) -> dict[str, float]:
        """The factor a, and the mean ratio of level step to threshold step, s_le / s0."""
        ratios = [(each.level_step.detach() / each.threshold_step).mean() for each in self._quantizers()]
        return {"aoq/shrink": float(self._quantizers()[0].shrink), "aoq/level_ratio": float(torch.stack(ratios).mean())}

    def _distillation(self, teacher: nn.Module, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The mean over a batch, shape (): of classes KL(teacher || student) in nats. outputs: the student's, fp32."""
        with torch.no_grad():
            wanted = teacher(inputs).float()
        return self.context.task.divergence(outputs, wanted)

    def _distance(self) -> Tensor | float:
        """The sum over layers of the norm of (weight - centre of its bin), shape ()."""
        # Keyed by identity: a shared weight counts once.
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
    """A copy of a model without quantizers and without gradients, in evaluation mode."""
    copy = round_rest(deepcopy(model), "float", exclude=exclude).eval().requires_grad_(False)
    for module in copy.modules():
        if isinstance(module, Slotted):
            module.add_slots()  # weight slots are empty already, activation slots may be filled
    return copy
