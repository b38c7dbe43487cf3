"""The oscillation regularizer for any training loop: its value and its gradient in closed form.

The formulas are in harness/methods/oscillation.py, the method that uses it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.config_base import QuantizerConfig, section
from harness.core.errors import UserError
from harness.oscillation.fused import regularizer_pass
from harness.oscillation.model_layers import ModelLayers
from harness.quantization import ClippedQuantizer, MaxAbsQuantizer, make_quantizer
from harness.quantization.autograd import inside
from harness.quantization.grid import safe_step
from harness.quantization.layers import WeightLayer


@torch.no_grad()
def oscillation_penalty(
    weight: Tensor, quantizer: MaxAbsQuantizer, strength: float, push: bool = True
) -> tuple[Tensor, Tensor]:
    """The value of R for one layer, shape (), and its gradient, in the shape and type of `weight`.

    push: False leaves of the gradient what it has through the scale alone. Sums run over the weights that share a step.
    With a clipped quantizer, a weight outside the range has the clipped code, and gradient 0 through the rounding. An
    all-zero tensor has value and gradient 0.
    """
    magnitude = weight.abs()
    dims = tuple(range(1 if quantizer.per_channel else 0, weight.dim()))
    peak = magnitude.amax(dim=dims, keepdim=quantizer.per_channel)
    step = quantizer.step_of(peak)
    scaled = weight / safe_step(step)
    code = scaled.round()
    within: Tensor | None = None
    if isinstance(quantizer, ClippedQuantizer):
        within = inside(scaled, *quantizer.levels)
        code = code.clamp_(*quantizer.levels)
    factor = 2.0 * strength / weight.numel()
    error = code - scaled
    # mean(q^2 - w^2) = mean(s^2 (k - v)(k + v)), v = w / s: this form avoids cancellation.
    value = 0.5 * factor * ((code + scaled).mul_(error).sum(dim=dims) * step.flatten().square()).sum()
    through = error if within is None else code * within - scaled
    gradient = through * (factor * step) if push else torch.zeros_like(weight)
    if quantizer.scale_gradient == "graph":
        slope = error if within is None else code - scaled * within
        pull = code.mul_(slope).sum(dim=dims, keepdim=quantizer.per_channel) * step
        # 1 where |w| attains its maximum, else 0; as floats, since bools are ten times slower on CPUs.
        largest = torch.eq(magnitude, peak, out=magnitude)
        ties = largest.sum(dim=dims, keepdim=quantizer.per_channel)
        step_slope = step / safe_step(peak)  # ds / d max|w|: 1/Q, times the clip ratio if clipped
        gradient.addcmul_(largest.mul_(weight.sign()), factor * step_slope * pull / ties)
    return value, gradient


class OscillationRegularizer:
    """The regularizer for your own training loop: call `add_gradient()` between backward and the optimizer step.

    model: any module; its linear and convolution layers are regularized, except those that `exclude` globs match.
    Weights may be replaced later (`load_state_dict(assign=True)`, a new head). With `quantizer={"norms": "quantized"}`
    norm layers are regularized, too, as are those to which `attach` gave slots.
    bits: the target bit-width, 2 to 8. strength: lambda, >= 0. fused: False for plain tensor operations; otherwise
    a fused pass over all weights where there is one (harness/kernels). Raises UserError for any other bits or strength.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int,
        strength: float,
        quantizer: QuantizerConfig | Mapping[str, Any] | None = None,
        scale_gradient: Literal["graph", "detached"] = "graph",
        exclude: str | Iterable[str] = (),
        fused: bool = True,
    ) -> None:
        if not (isinstance(strength, int | float) and math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength: {strength!r} is no number of 0 or more")
        self.strength = strength
        self._config, self._bits, self._scale_gradient = (
            section(quantizer, QuantizerConfig, "quantizer"),
            bits,
            scale_gradient,
        )
        self._fused, self._present = fused, ModelLayers(model, exclude, self._config.quantizes_norms)
        self._quantizers: dict[int, tuple[Tensor, MaxAbsQuantizer]] = {}
        self._read(self._present.trained())

    def _read(self, layers: Sequence[WeightLayer]) -> None:
        """Take these layers for those of the model. A quantizer is fitted to each weight that is new."""
        if not layers:
            raise UserError("the oscillation regularizer finds no trainable linear or convolution layer in this model")
        known, self._quantizers = self._quantizers, {}
        weights = [layer.weight for layer in layers]
        for weight, layer in zip(weights, layers, strict=True):
            self._quantizers[id(weight)] = known.get(id(weight)) or (weight, self._quantizer(layer))
        self._pass = regularizer_pass(weights, self._config.granularity == "channel", self._fused)

    def _quantizer(self, layer: WeightLayer) -> MaxAbsQuantizer:
        made = make_quantizer(self._config, self._bits, self._scale_gradient, layer=layer).to(layer.weight.device)
        made.fit(layer.weight)
        return made

    @torch.no_grad()
    def add_gradient(self, signs: torch.Generator | None = None, push: bool = True) -> Tensor:
        """Add dR/dw to each weight's `.grad`, in place; returns R, shape (), without synchronising.

        signs: draws a sign for each entry of dR/dw, + or - with equal probability, so that only its size is kept; on
        the weights' device. None: dR/dw as it is. push: False leaves of dR/dw the part through the scale alone.
        The weights are those that the layers have now. Warns of a layer that was put into the model later.
        """
        self._present.refresh("it is regularized from now on")
        trained = self._present.trained()
        if [id(layer.weight) for layer in trained] != list(self._quantizers):
            self._read(trained)
        layers = []
        for weight, quantizer in self._quantizers.values():
            if weight.grad is None:  # the task loss does not depend on it
                weight.grad = torch.zeros_like(weight)
            layers.append((weight, weight.grad, quantizer))
        whole = signs is None and push
        values, rest = self._pass.add_gradient(layers, self.strength) if whole else ([], layers)
        for weight, gradient, quantizer in rest:
            value, more = oscillation_penalty(weight, quantizer, self.strength, push)
            if signs is not None:
                more.mul_(torch.empty_like(more).bernoulli_(generator=signs).mul_(2).sub_(1))
            gradient.add_(more)
            values.append(value)
        return torch.stack(values).sum()
