"""Gradient l1 regularization. Alizadeh, Behboodi, van Baalen, Louizos, Blankevoort, Welling, ICLR 2020
(arXiv 2002.07520).

Rounding moves each weight by at most half a step, so by a vector of which only the maximum norm is bounded, by delta
say; to first order the worst of them raises the loss by delta * ||g||_1, g the gradient. The network trains in float on

    L + strength * sum_l ||dL/dW_l||_1 + activation_strength * sum_l ||dL/dA_l||_1,

L the batch's mean task loss, W_l the weight that would be quantized, (O, I) or (O, I, kh, kw), and A_l the input of the
same layer, (B, ...). The penalty's gradient differentiates twice, so a step costs several plain ones.

Means something without a bit-width, so needs no target_bit; the loop monitors accuracy there when one is given. W_l is
the effective weight where a method of the stack fills weight_transform; under a weight_quantizer, which is not what the
paper does, g is the straight-through gradient of the latent weight. last_epochs: no earlier epoch counts as best, nor
for patience, and the steps before are those of the plain run.

The paper's text was not available. From secondary notes: only the last 15 epochs or so, and strength 0.05 as ImageNet's
strong setting (1e-4 to 0.1 is the range to tune in). From memory: the formula. Deviations: activation_strength 0, since
this harness rounds weights only (the notes suggest the same strength for both); the network's input, which has no
gradient, is no A_l; their clipping of gradients at 5 is the run's to set. A frozen weight has no g, a shared one once.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Context, Method, MethodConfig, Step
from harness.quantization.layers import attach
from harness.quantization.slots import Unfilled


def gradient_norm(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor | float:
    """The sum of ||dloss/dt||_1 over tensors of the loss's graph, shape (), with a graph of its own; 0 for none.

    A tensor that the loss does not depend on counts 0.
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
            # By half an epoch more, so that the fraction times the epochs cannot fall below a whole number.
            self.selection_start = (self._start + 0.5) / epochs

    @classmethod
    def tiny_config(cls) -> MethodConfig:
        return cls.Config(last_epochs=1)

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        self._layers = [layer for layer in attach(model, self.context.exclude).values() if layer.weight.requires_grad]
        if not self._layers:
            raise UserError("gradient_l1 finds no trainable linear or convolution layer in this model")
        self._active = self._watching = False
        # Of the present step, from its forward pass: what weight_transform slots made, and the layers' inputs.
        self._effective: list[Tensor] = []
        self._inputs: list[Tensor] = []

    def on_step_start(self, step: Step) -> None:
        self._active = not self._idle and step.index >= self._start * self.context.steps_per_epoch
        # The loop asks before each forward pass: without the penalty it may fuse attention, as the plain run does.
        self.needs_double_backward = self._active
        self._forget()
        if self._active and not self._watching:  # not in prepare, which later methods of the stack come after
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
        """Keep, from now on, the tensors of each forward pass that are no parameters."""
        self._watching = True
        self._plain: dict[int, Tensor] = {}
        effective, inputs = self._effective, self._inputs

        # Functions rather than methods: copies of the model share the former, but would copy the latter's object.
        def keep_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if module.training and output.requires_grad:
                effective.append(output)

        def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if module.training and args[0].requires_grad:
                inputs.append(args[0])

        for layer in self._layers:
            if isinstance(layer.weight_transform, Unfilled):
                self._plain[id(layer.weight)] = layer.weight  # by identity: a shared weight counts once
            else:
                layer.weight_transform.register_forward_hook(keep_output)
            if self.config.activation_strength:
                layer.register_forward_pre_hook(keep_input)

    def _forget(self) -> None:
        self._effective.clear()
        self._inputs.clear()
