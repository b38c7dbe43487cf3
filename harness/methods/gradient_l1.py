"""Gradient l1 regularization. Alizadeh, Behboodi, van Baalen, Louizos, Blankevoort, Welling, ICLR 2020
(arXiv 2002.07520).

Float training towards a loss that rounding cannot raise much. Rounding moves each weight by at most half a step, that
is, by a vector whose maximum norm is bounded by some delta. To first order the worst such vector raises the loss by
delta * ||g||_1, with g the gradient.

Equations. The loss is

    L + strength * sum_l ||dL/dW_l||_1 + activation_strength * sum_l ||dL/dA_l||_1.

L is the mean task loss of the batch, W_l the weight that would be quantized, (O, I) or (O, I, kh, kw), and A_l the
input of the same layer, (B, ...). The gradient of the penalty needs double backward, so a step costs several plain
ones.

Where it acts: W_l is the effective weight if a method of the stack fills weight_transform. Under a weight_quantizer
(not in the paper), g is the straight-through gradient of the latent weight. A frozen weight is left out; a shared one
counts once. A method that fills slots for gradients is refused, since these could not be differentiated again.

Target bit: not needed, since no bit-width enters. If one is given, the loop monitors the accuracy at that bit-width.

Settings: the penalty is on in the last `last_epochs` epochs; the steps before are those of the run without it. No
earlier epoch counts as best, nor for patience.

Sources: the paper's text was not available. From secondary notes: the penalty only in the last 15 epochs or so, and
strength 0.05 as the strong setting on ImageNet (tune in 1e-4 to 0.1). From memory: the formula.

Activations are rounded from calibration at deployment, where a point has bits for them. Set activation_strength then:
it prepares for that as strength does for weights.

Deviations: activation_strength is 0 by default (the notes suggest the same strength for both); the network's input is
not among the A_l, since it has no gradient; the paper's gradient clipping at 5 is left to the run's settings.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step
from harness.quantization.gradients import refuse_gradient_slots
from harness.quantization.layers import attach
from harness.quantization.slots import Unfilled


def gradient_norm(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor | float:
    """The sum of ||dloss/dt||_1 over tensors of the loss's graph, shape (), differentiable; 0 for no tensors.

    A tensor that the loss does not depend on adds 0.
    """
    if not tensors:
        return 0.0
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    sums = [gradient.abs().sum() for gradient in gradients if gradient is not None]
    return torch.stack(sums).sum() if sums else 0.0


class GradientL1(Method):
    """Float training towards a loss that rounding cannot raise much; deployed by rounding to nearest."""

    kind, acts_on = "regularizer", "gradients of weights and activations"

    needs_target_bit = False
    needs_double_backward = True

    class Config(MethodConfig):
        name: Literal["gradient_l1"] = "gradient_l1"
        strength: float = Field(0.05, ge=0, le=1e3, description="lambda of the weights; tune in 1e-4 to 0.1 (paper)")
        activation_strength: float = Field(0.0, ge=0, le=1e3, description="lambda of the layers' inputs (paper: > 0)")
        last_epochs: int = Field(
            15, ge=1, le=100_000, description="epochs at the end that have the penalty (paper: 15)"
        )

    config: Config

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        epochs = context.total_steps // context.steps_per_epoch
        self._start = max(0, epochs - config.last_epochs)
        self._idle = config.strength == 0 and config.activation_strength == 0
        if self._start and not self._idle:
            # Half an epoch more, so that rounding of (fraction * epochs) cannot include the epoch before.
            self.selection_start = (self._start + 0.5) / epochs

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(last_epochs=1)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        self._layers = [layer for layer in attach(model, self.context.exclude).values() if layer.weight.requires_grad]
        if not self._layers:
            raise UserError("gradient_l1 finds no trainable linear or convolution layer in this model")
        self._active = self._watching = False
        # From the forward pass of this step: outputs of the weight_transform slots, and the layers' inputs.
        self._effective: list[Tensor] = []
        self._inputs: list[Tensor] = []

    def prepared(self, model: nn.Module) -> None:
        if not self._idle:
            refuse_gradient_slots(model, "gradient_l1")

    def on_step_start(self, step: Step) -> None:
        self._active = not self._idle and step.index >= self._start * self.context.steps_per_epoch
        # The loop reads this before each forward pass: without the penalty, attention may be fused as in other runs.
        self.needs_double_backward = self._active
        self._forget()
        if self._active and not self._watching:  # not in prepare: later methods of the stack may still fill slots
            self._watch()

    def penalty(self, step: Step) -> Tensor | float:
        if not self._active:
            return 0.0
        assert step.task_loss is not None, "the loop gives it"
        value: Tensor | float = 0.0
        if self.config.strength:
            value = self.config.strength * gradient_norm(step.task_loss, [*self._plain.values(), *self._effective])
        if self.config.activation_strength:
            value = value + self.config.activation_strength * gradient_norm(step.task_loss, self._inputs)
        return value

    def after_step(self, step: Step) -> None:
        self._forget()

    def _watch(self) -> None:
        """From now on, keep the tensors of each forward pass that are not parameters."""
        self._watching = True
        self._plain: dict[int, Tensor] = {}
        effective, inputs = self._effective, self._inputs

        # Functions, not bound methods: a copy of the model shares functions but would copy a bound method's object.
        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if module.training and output.requires_grad:
                effective.append(output)

        def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if module.training and args[0].requires_grad:
                inputs.append(args[0])

        for layer in self._layers:
            if isinstance(layer.weight_transform, Unfilled):
                self._plain[id(layer.weight)] = layer.weight  # keyed by identity: a shared weight counts once
            else:
                layer.weight_transform.register_forward_hook(keep_output)
            if self.config.activation_strength:
                layer.register_forward_pre_hook(keep_input)

    def _forget(self) -> None:
        self._effective.clear()
        self._inputs.clear()
