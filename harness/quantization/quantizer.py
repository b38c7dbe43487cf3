"""Weight quantizers: modules that a layer's `weight_quantizer` slot holds.

Shapes: a weight is (O, I) or (O, I, kh, kw); a step is () per tensor or (O, 1, ...) per output channel.
"""

from typing import Any, ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn

from harness.core.config_base import QuantizerConfig
from harness.core.errors import UserError
from harness.kernels import dispatch
from harness.quantization.autograd import BOUND_SLACK, by_passes, clip, gives_bf16, round_ste
from harness.quantization.grid import Levels, LevelsKind, clip_ratio, levels, max_abs, round_to_codes, safe_step
from harness.quantization.norms import per_channel

#: Whether a step computed from the weights takes part in the gradient.
ScaleGradient = Literal["graph", "detached"]
#: What becomes of a learned step at another bit-width: see `WeightQuantizer.at_bits`.
KeepScale = Literal["keep_step", "keep_range"]


class WeightQuantizer(nn.Module):
    """Fake quantization `q(w) = s * k`, `k` an integer code of the grid `self.levels`.

    bits: 2 to 8. Subclasses give `step`; they may learn it, or shape the grid otherwise. One that keeps values taken
    from a weight (`takes_values`) says how in `start_from`, and calls `require_fitted` where it uses them.

    fitted: whether it has these values, from `fit` or from a loaded state dict; always True where there are none. Set
    it to True after setting values by hand. Filling a layer's slot fits a quantizer that is not fitted yet.
    """

    takes_values: ClassVar[bool] = False
    fitted: bool

    def __init__(self, bits: int, per_channel: bool = False, kind: LevelsKind = "symmetric") -> None:
        super().__init__()
        if isinstance(bits, nn.Module) or isinstance(per_channel, nn.Module):  # a class or partial that fills a slot
            own = type(self).__name__
            raise UserError(f"{own}: it takes bits, not a layer; fill slots by a function, lambda layer: {own}(4)")
        self.bits, self.per_channel, self.kind = bits, per_channel, kind
        self.levels: Levels = levels(bits, kind)
        self.fitted = not self.takes_values

    @final
    def fit(self, weight: Tensor) -> Self:
        """Take initial values from a weight; returns itself."""
        self.start_from(weight.detach())
        self.fitted = True
        return self

    def start_from(self, weight: Tensor) -> None:
        """What `fit` does: set initial values from a weight without a graph."""

    def described(self) -> tuple[str, str]:
        """The range and the step in words, for `repr`: formulas of the weight, or numbers that were fitted."""
        return "own", "own"

    def extra_repr(self) -> str:
        granularity = "channel" if self.per_channel else "tensor"
        span, step = self.described() if self.fitted else ("not fitted", "not fitted")
        return f"bits={self.bits}, granularity={granularity}, range={span}, step={step}"

    def require_fitted(self) -> None:
        """Raise UserError where initial values are still missing: they would round a network to zeros, unnoticed."""
        if not self.fitted:
            name, further = type(self).__name__, ", per_channel=True" if self.per_channel else ""
            raise UserError(
                f"{name} is not fitted: write layer.weight_quantizer = {name}({self.bits}{further}).fit(layer.weight), "
                "load a state dict, or let attach(model, weight_quantizer=...) fit it to the layer's weight"
            )

    def step(self, weight: Tensor) -> Tensor:
        """The step s for this weight, >= 0, with its gradient."""
        raise TypeError(f"{type(self).__name__} defines no step")

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on the grid, same shape: straight-through inside the range, gradient 0 outside."""
        step = self.step(weight)
        scaled = weight / safe_step(step)
        return step * round_ste(clip(scaled, *self.levels))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes, int8, same shape as `weight`."""
        return round_to_codes(weight, self.step(weight), self.levels).to(torch.int8)

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        """The values of the grid for this weight, ascending, (1, L), or (O, L) per output channel."""
        return self.step(weight).reshape(-1, 1) * torch.arange(self.levels.low, self.levels.high + 1).to(weight)

    @torch.no_grad()
    def threshold_distance(self, weight: Tensor) -> Tensor:
        """How far each weight is from the decision threshold nearest to it, in steps, same shape.

        0 to 1/2 between the lowest and the highest level, more beyond them. The default is for thresholds half a
        step from the levels `s * k`.
        """
        scaled = weight / safe_step(self.step(weight))
        low, high = self.levels
        return (scaled - (scaled.floor().clamp(low, high - 1) + 0.5)).abs()

    def at_bits(self, bits: int, scale: KeepScale) -> "WeightQuantizer":
        """A quantizer for another bit-width that keeps this one's learned step or range.

        The default has learned nothing and fits anew.
        """
        return self if bits == self.bits else type(self)(bits, self.per_channel)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Loading counts as fitting; values that were never set take the shape of those that are loaded."""
        own = {name: value for name, value in (*self._parameters.items(), *self._buffers.items()) if value is not None}
        saved = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        if not self.fitted:
            for name, value in saved.items():
                if own[name].shape != value.shape:  # of the quantizer's own type and device, as loading leaves them
                    fresh = own[name].detach().new_empty(value.shape)
                    setattr(self, name, nn.Parameter(fresh) if name in self._parameters else fresh)
            self.fitted = len(saved) == len(own)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class MaxAbsQuantizer(WeightQuantizer):
    """The paper's quantizer: symmetric, `s = max|w| / Q`; 2 bits is ternary (arXiv 2502.00490, section 2).

    scale_gradient: "graph" leaves s in the graph, as the paper's code does; "detached" cuts it out. `fused` may be
    set to False for plain tensor operations where a fused pass (harness/kernels) would serve.
    """

    fused: bool = True

    def __init__(self, bits: int, per_channel: bool = False, scale_gradient: ScaleGradient = "graph") -> None:
        super().__init__(bits, per_channel)
        self.scale_gradient = scale_gradient

    def step(self, weight: Tensor) -> Tensor:
        source = weight if self.scale_gradient == "graph" else weight.detach()
        return self.step_of(max_abs(source, self.per_channel))

    def step_of(self, peak: Tensor) -> Tensor:
        """The step that goes with max|w|, in its shape."""
        return peak / self.levels.high

    def peaks(self, weight: Tensor) -> Tensor:
        """`max_abs` by a fused pass; the caller has asked `dispatch`."""
        passes = dispatch.passes_on(weight.device)
        peaks: Tensor = passes.peaks(weight, weight.shape[0] if self.per_channel else 1)
        return peaks.view(-1, *([1] * (weight.dim() - 1))) if self.per_channel else peaks.view(())

    def described(self) -> tuple[str, str]:
        return "max|w|", f"max|w| / {self.levels.high}"

    def ratios(self, ones: Tensor) -> Tensor:
        """The part of max|w| that the range covers, fp32 (G,), of each group, from as many ones."""
        return ones

    @property
    def clipped_at(self) -> float:
        """The largest code of a clipped range; -1 where every weight is inside."""
        return -1.0

    @gives_bf16
    def forward(self, weight: Tensor, bf16: bool = False) -> Tensor:
        if self.fused and dispatch.fake_quantization(weight, self.per_channel):
            return by_passes(_FakeQuantize(self, bf16 and weight.is_cpu), weight)
        return self.plain(weight)

    def plain(self, weight: Tensor) -> Tensor:
        """The weight on the grid by plain operations, without the base's clamp.

        That one would give the largest weight gradient 0 where it is an ulp beyond Q.
        """
        step = self.step(weight)
        return step * round_ste(weight / safe_step(step))


class _FakeQuantize:
    """A max-abs quantizer's forward and backward pass, each one fused pass over the weight."""

    def __init__(self, quantizer: MaxAbsQuantizer, bf16: bool) -> None:
        self.quantizer, self.plain, self.options = quantizer, quantizer.plain, (bf16,) if bf16 else ()

    def forward(self, weight: Tensor) -> Tensor:
        peak = self.quantizer.peaks(weight)
        self.both = peak.flatten(), self.quantizer.step_of(peak).flatten()
        passes = dispatch.passes_on(weight.device)
        return passes.quantize(weight, self.both[1], self.quantizer.clipped_at, *self.options)

    def backward(self, gradient: Tensor, weight: Tensor) -> tuple[Tensor]:
        clipped_at, graph = self.quantizer.clipped_at, self.quantizer.scale_gradient == "graph"
        gradient, passes = dispatch.alike(gradient, weight, weight.is_cpu), dispatch.passes_on(weight.device)
        return (passes.quantize_backward(weight, gradient, *self.both, clipped_at, BOUND_SLACK, graph),)


class ClippedQuantizer(MaxAbsQuantizer):
    """Max-abs with a clipped range: `s = ratio * max|w| / Q`, the ratio of least squared error, from `fit`."""

    takes_values = True

    def __init__(self, bits: int, per_channel: bool = False, scale_gradient: ScaleGradient = "graph") -> None:
        super().__init__(bits, per_channel, scale_gradient)
        self.ratio: Tensor
        self.register_buffer("ratio", torch.ones(()))

    def start_from(self, weight: Tensor) -> None:
        self.ratio = clip_ratio(weight, self.levels, self.per_channel)

    def described(self) -> tuple[str, str]:
        return f"{shown(self.ratio)} max|w|", f"range / {self.levels.high}"

    def step_of(self, peak: Tensor) -> Tensor:
        self.require_fitted()
        return super().step_of(peak) * self.ratio

    def ratios(self, ones: Tensor) -> Tensor:
        self.require_fitted()
        return (
            self.ratio.flatten() if self.ratio.numel() == (len(ones) if self.per_channel else 1) else ones * self.ratio
        )

    @property
    def clipped_at(self) -> float:
        return float(self.levels.high)

    def plain(self, weight: Tensor) -> Tensor:
        return WeightQuantizer.forward(self, weight)

    def at_bits(self, bits: int, scale: KeepScale) -> "WeightQuantizer":
        if bits == self.bits:
            return self
        other = type(self)(bits, self.per_channel)
        factor = 1.0 if scale == "keep_range" else other.levels.high / self.levels.high
        other.ratio, other.fitted = self.ratio * factor, self.fitted
        return other


def shown(values: Tensor) -> str:
    """A number, or the least and the largest of several, to three digits; "?" for a tensor without numbers."""
    if type(values) not in (Tensor, nn.Parameter) or values.is_meta:
        return "?"
    low, high = (f"{value:.3g}" for value in torch.stack(values.detach().aminmax()).tolist())
    return low if values.numel() == 1 else f"{low}...{high}"


def make_quantizer(
    config: QuantizerConfig,
    bits: int,
    scale_gradient: ScaleGradient = "graph",
    fused: bool = True,
    layer: nn.Module | None = None,
) -> MaxAbsQuantizer:
    """The run's default quantizer at a bit-width: max-abs or clipped, per tensor or channel (never of a norm layer)."""
    kind = ClippedQuantizer if config.range == "mse" else MaxAbsQuantizer
    quantizer = kind(bits, per_channel(config, layer), scale_gradient)
    quantizer.fused = fused
    return quantizer
