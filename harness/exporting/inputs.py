"""Quantizers of activations as plain values, and modules that compute the same with these."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import UserError
from harness.quantization.activations import ActivationQuantizer, RangeQuantizer, TokenQuantizer
from harness.quantization.learned_activations import LearnedStepQuantizer
from harness.quantization.learned_thresholds import LearnedThresholdQuantizer
from harness.quantization.on_grid import Grid, fake_quantize
from harness.quantization.shaped_activations import (
    BiasedStepQuantizer,
    ClampedQuantizer,
    CompandingActivation,
    Shift,
    Shifted,
)
from harness.quantization.slots import Unfilled

#: Quantizers with another form than one grid: what their constructor takes, beside `bits`; their state is kept whole.
_WHOLE: dict[str, tuple[type[ActivationQuantizer], tuple[str, ...]]] = {
    "companding": (CompandingActivation, ("signed", "intervals")),
    "thresholds": (LearnedThresholdQuantizer, ("signed",)),
    "rows": (TokenQuantizer, ("rows",)),
}


class GridInput(nn.Module):
    """`step clip(round((x + before) / step), low, high) + after`, the last for inputs with biases alone.

    step: fp32 (). low, high: the outermost codes, at most 255 apart.
    """

    step: Tensor
    before: Tensor | None
    after: Tensor | None

    def __init__(
        self, step: Tensor, low: int, high: int, before: Tensor | None = None, after: Tensor | None = None
    ) -> None:
        super().__init__()
        self.low, self.high = low, high
        for name, value in (("step", step), ("before", before), ("after", after)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The input on the grid, fp32, same shape."""
        x = x if self.before is None else x + self.before
        x = fake_quantize(x, Grid(self.step, float(self.low), float(self.high)), 0.0)
        return x if self.after is None else x + self.after


def plain_input(module: nn.Module) -> nn.Module | None:
    """What computes as a deployed quantizer of activations does; None for an empty slot. Raises UserError."""
    if isinstance(module, Unfilled):
        return None
    if isinstance(module, Shifted):
        inner = plain_input(module.quantizer)
        if isinstance(inner, GridInput):
            return GridInput(inner.step, inner.low, inner.high, inner.before, module.shift)
        raise UserError(f"{type(module.quantizer).__name__} with biases has no form in a file")
    if isinstance(module, BiasedStepQuantizer):
        return _grid(module, module.before, module.after)
    if isinstance(module, RangeQuantizer | LearnedStepQuantizer | ClampedQuantizer):
        return _grid(module)
    if isinstance(module, Shift | GridInput | TokenQuantizer | CompandingActivation | LearnedThresholdQuantizer):
        return module
    raise UserError(f"{type(module).__name__} has no form in a file")


def _grid(module: ActivationQuantizer, *biases: Tensor) -> GridInput:
    step, low, high = module.grid(torch.zeros(1))
    return GridInput(step.reshape(()), int(low), int(high), *biases)


def described(module: nn.Module) -> dict[str, Any]:
    """What `plain_input` gave, as JSON values; its tensors are those of its state dict."""
    if isinstance(module, GridInput):
        return {"kind": "grid", "low": module.low, "high": module.high}
    if isinstance(module, Shift):
        return {"kind": "shift"}
    kind = next(name for name, (kind, _) in _WHOLE.items() if isinstance(module, kind))
    named: Any = module
    return {"kind": kind, "bits": named.bits, **{key: getattr(named, key) for key in _WHOLE[kind][1]}}


def built(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The module that `described` was given, from what it said and its tensors."""
    if about["kind"] == "grid":
        return GridInput(state["step"], about["low"], about["high"], state.get("before"), state.get("after"))
    if about["kind"] == "shift":
        return Shift(state["shift"])
    kind, keys = _WHOLE[about["kind"]]
    module = kind(about["bits"], **{key: about[key] for key in keys})
    module.load_state_dict(dict(state))
    return module.eval()
