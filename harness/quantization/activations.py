"""Quantizers of activations: modules for the slots `input_quantizer` and, of a product, `other_quantizer`.

Each puts a tensor on a grid `step * k`, k an integer between two codes that are 2^b - 1 apart, with 0 among the levels.
The gradient passes straight through inside the range and is 0 outside. What is outside is decided as in
torch.fake_quantize_per_tensor_affine: a value that rounds to the last level is inside.
"""

import math
from typing import Any, ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn

from harness.core.config_base import ActivationsConfig
from harness.core.errors import UserError
from harness.quantization.grid import levels, safe_step
from harness.quantization.observed import Observed, RangeKind
from harness.quantization.on_grid import Grid, affine_grid, fake_quantize
from harness.quantization.quantizer import KeepScale, shown
from harness.quantization.slots import Unfilled

#: Values that share a range, see `TokenQuantizer`.
Rows = Literal["last", "column", "sample"]
_OVER: dict[Rows, tuple[int, ...]] = {"last": (-1,), "column": (-2,), "sample": (-3, -2, -1)}
#: The largest magnitude of a range: twice as much is still finite.
LARGEST = torch.finfo(torch.float32).max / 2


class ActivationQuantizer(nn.Module):
    """Fake quantization of an input: never more than 2^bits different codes per tensor (or row).

    bits: 2 to 8. signed: False where the input is never negative. Subclasses give `grid`, or `forward` and `codes`. One
    that keeps values (`takes_values`) takes them from calibration in `start_from`, says in `taken` which of its
    attributes follow from loaded ones, and calls `require_fitted` where it uses them.

    fitted: whether it has these values, from `fit` or from a loaded state dict; always True where there are none.
    """

    takes_values: ClassVar[bool] = True
    #: How far beyond the last level the gradient is still 1, in steps: what rounds to that level is inside.
    slack: ClassVar[float] = 0.5
    #: Whether its range is a constant, which is kept at every bit-width whatever `deploy.scale` says.
    keeps_range: ClassVar[bool] = False
    fitted: bool

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__()
        levels(bits)  # refuses what is no bit-width
        self.bits, self.signed = bits, signed
        self.fitted = not self.takes_values

    @final
    def fit(self, observed: Observed | Tensor) -> Self:
        """Take initial values from what calibration saw of the input, or from one batch of it; returns itself."""
        found = observed if isinstance(observed, Observed) else Observed.of(observed)
        self.signed = not found.never_negative
        with torch.no_grad():
            self.start_from(found)
        self.fitted = True
        return self

    def start_from(self, observed: Observed) -> None:
        """What `fit` does: set initial values; `signed` is set already."""

    def taken(self) -> None:
        """Called once all values are loaded from a state dict."""

    def require_fitted(self) -> None:
        """Raise UserError where initial values are still missing."""
        if not self.fitted:
            raise UserError(
                f"{type(self).__name__} is not fitted: call its fit(inputs) with a batch of what it is to round, or "
                "load a state dict"
            )

    def grid(self, x: Tensor) -> Grid:
        """The grid for an input, with the gradient of its step."""
        raise TypeError(f"{type(self).__name__} defines no grid")

    def forward(self, x: Tensor) -> Tensor:
        """The input on the grid, fp32, same shape. NaN stays NaN."""
        return fake_quantize(x, self.grid(x), self.slack)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Integer codes, int16, same shape as `x`; 0 to 2^bits - 1 where the grid follows a range."""
        step, low, high = self.grid(x)
        scaled: Any = (x.detach() / safe_step(step)).round_()
        return (scaled.clamp_(low, high) - self.first_code(low)).to(torch.int16)

    def first_code(self, low: Tensor | float) -> Tensor | float:
        """What is subtracted from k to give `codes`: by default the lowest k."""
        return low

    def at_bits(self, bits: int, scale: KeepScale) -> "ActivationQuantizer":
        """A quantizer for another bit-width that keeps this one's step or range."""
        raise NotImplementedError

    def in_float(self) -> nn.Module:
        """What takes its place at a point whose activations are float: by default nothing."""
        return Unfilled()

    def recalibrated(self, default: "ActivationQuantizer") -> "ActivationQuantizer":
        """What takes its place where the default quantizer rounds: by default that quantizer."""
        return default

    def described(self) -> str:
        """The range in words, for `repr`."""
        return "own"

    def extra_repr(self) -> str:
        sign = "signed" if self.signed else "never negative"
        return f"bits={self.bits}, {sign}, {self.described()}" if self.fitted else f"bits={self.bits}, not fitted"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Loading counts as fitting."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        own = [name for name, value in (*self._parameters.items(), *self._buffers.items()) if value is not None]
        if self.takes_values and all(prefix + name in state_dict for name in own):
            self.fitted = True
            self.taken()


class RangeQuantizer(ActivationQuantizer):
    """Base of those with one range per tensor, in the buffers `low` and `high`, both ()."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> Self:
        """Set the range by hand; it is widened to hold 0. Returns itself."""
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"the range of an activation quantizer is from {low} to {high}; it must be finite")
        self.low.fill_(max(-LARGEST, min(low, 0.0)))
        self.high.fill_(min(LARGEST, max(high, 0.0)))
        self.signed, self.fitted = low < 0, True
        return self

    def taken(self) -> None:
        self.signed = bool(self.low < 0)

    def grid(self, x: Tensor) -> Grid:
        self.require_fitted()
        return affine_grid(self.low, self.high, self.bits)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """keep_range keeps both ends; keep_step scales them by the number of steps between them."""
        if bits == self.bits:
            return self
        factor = (2**bits - 1) / (2**self.bits - 1) if scale == "keep_step" else 1.0
        other = self._like(bits)
        other.low, other.high = self.low * factor, self.high * factor
        other.signed, other.fitted = self.signed, self.fitted
        return other.train(self.training)

    def _like(self, bits: int) -> "RangeQuantizer":
        return type(self)(bits)

    def described(self) -> str:
        return f"range={shown(self.low)}...{shown(self.high)}"


class StaticQuantizer(RangeQuantizer):
    """A fixed range per tensor, from calibration: asymmetric, from 0 where the input is never negative.

    range: how `fit` finds it, see `Observed.range`.
    """

    def __init__(self, bits: int, range: RangeKind = "mse", percentile: float = 99.99) -> None:
        super().__init__(bits)
        self.range, self.percentile = range, percentile

    def start_from(self, observed: Observed) -> None:
        self.set_range(*observed.range(self.range, self.bits, self.percentile))

    def _like(self, bits: int) -> RangeQuantizer:
        return type(self)(bits, self.range, self.percentile)


class TokenQuantizer(ActivationQuantizer):
    """A range for each row, found at run time: from its least to its largest value, and 0. No state.

    rows: "last", along the last dimension (inputs of linear layers, the left operand of a product); "column", along the
    one before (the right operand); "sample", a whole image (inputs of convolutions). Each output of a linear layer or
    of a product then is a sum over one row, or over one of either operand, so that the steps factor out of it.
    """

    takes_values = False

    def __init__(self, bits: int, rows: Rows = "last") -> None:
        super().__init__(bits)
        self.rows: Rows = rows

    def forward(self, x: Tensor) -> Tensor:
        if self.rows == "column":  # transposed, since steps belong to leading dimensions
            turned = x.transpose(-1, -2)
            return fake_quantize(turned, self._grid(turned, "last"), self.slack).transpose(-1, -2)
        return super().forward(x)

    def grid(self, x: Tensor) -> Grid:
        return self._grid(x, self.rows)

    def _grid(self, x: Tensor, rows: Rows) -> Grid:
        if not x.numel():
            return Grid(x.new_ones(()), 0.0, 0.0)
        values = x.detach()
        low = values.amin(dim=_OVER[rows], keepdim=True).clamp(-LARGEST, 0.0)
        high = values.amax(dim=_OVER[rows], keepdim=True).clamp(0.0, LARGEST)
        return affine_grid(low, high, self.bits)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        return self if bits == self.bits else type(self)(bits, self.rows)

    def described(self) -> str:
        return f"rows={self.rows}"


def make_activation_quantizer(
    config: ActivationsConfig, bits: int, observed: Observed | None = None, rows: Rows = "last"
) -> ActivationQuantizer:
    """The run's default quantizer of an input at a bit-width, fitted. observed: not needed for ranges per token."""
    if config.granularity == "token":
        return TokenQuantizer(bits, rows)
    if observed is None:
        raise UserError("activations: a range per tensor is taken from calibration data, and there are none")
    return StaticQuantizer(bits, config.range, config.percentile).fit(observed)
