"""A quantizer of softmax scores whose levels are powers of the square root of 2."""

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.quantization.activations import ActivationQuantizer
from harness.quantization.observed import Observed
from harness.quantization.quantizer import KeepScale, shown

#: Percentiles of the scores that `fit` tries as delta (released code of ERQ and RepQ-ViT).
PERCENTILES = (99.9, 99.99, 99.999)


class LogSqrt2Quantizer(ActivationQuantizer):
    """`q(x) = delta 2^(-k / 2)`, `k = round(-2 log2(x / delta))`, 0 from the last code on (Li et al. 2023, 2212.08254).

    Codes k are 0 (x >= delta) to 2^b - 1, which means 0. In the released code k >= 2^b means 0, so that there are
    2^b + 1 values in all; `extra_level` gives these. Values below 0 become 0. It has no gradient: it is for deployment.
    delta is the percentile of least squared error, from `fit`, and is kept at other bit-widths.
    """

    keeps_range = True
    delta: Tensor

    def __init__(self, bits: int, extra_level: bool = False) -> None:
        super().__init__(bits, signed=False)
        self.extra_level = extra_level
        self.register_buffer("delta", torch.zeros(()))

    def start_from(self, observed: Observed) -> None:
        """Raises UserError for an input with negative values."""
        if self.signed:
            raise UserError(
                f"{type(self).__name__} is for inputs that are never negative, and {observed.low:g} was seen"
            )
        places = torch.arange(len(observed.counts), dtype=torch.float64) - len(observed.counts) // 2 + 0.5
        counts, centres = observed.counts.double(), (places * observed.width).clamp(min=0)
        errors: dict[float, float] = {}
        for percentile in PERCENTILES:
            delta = observed.range("percentile", self.bits, percentile)[1]
            rounded = self._at(centres, torch.tensor(delta, dtype=torch.float64))
            errors.setdefault(float((counts * (rounded - centres).square()).sum()), delta)
        self.delta.fill_(errors[min(errors)])

    def forward(self, x: Tensor) -> Tensor:
        self.require_fitted()
        return self._at(x, self.delta)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        self.require_fitted()
        return self._codes(x, self.delta).to(torch.int16)

    def _codes(self, x: Tensor, delta: Tensor) -> Tensor:
        """k in floating point, the last one for values that become 0."""
        last = 2**self.bits - (not self.extra_level)
        ratio = (x / torch.where(delta > 0, delta, 1.0)).clamp(min=0)
        return (-2 * ratio.log2()).round().clamp(0, last)

    def _at(self, x: Tensor, delta: Tensor) -> Tensor:
        k = self._codes(x, delta)
        last = 2**self.bits - (not self.extra_level)
        return torch.where(k >= last, 0.0, delta * torch.exp2(-k / 2))

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        if bits == self.bits:
            return self
        other = type(self)(bits, self.extra_level)
        other.delta, other.fitted = self.delta.clone(), self.fitted
        return other.train(self.training)

    def described(self) -> str:
        return f"delta={shown(self.delta)}"
