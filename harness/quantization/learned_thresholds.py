"""A quantizer of activations with evenly spaced levels and learned thresholds."""

import torch
from torch import Tensor, nn

from harness.quantization.activations import ActivationQuantizer
from harness.quantization.autograd import straight_through
from harness.quantization.observed import Observed
from harness.quantization.quantizer import KeepScale, shown
from harness.quantization.shaped_activations import MagnitudeQuantizer, reach_of


class LearnedThresholdQuantizer(MagnitudeQuantizer):
    """Evenly spaced levels with learned thresholds (Z. Liu et al., CVPR 2022, arXiv 2111.14826, N2UQ).

    With m codes above 0, gaps a_1 ... a_m > 0 and ends T_k = a_1 + ... + a_k, the code of v = scale_in m |x| / r is the
    number of thresholds T_(k-1) + a_k / 2 below v, and the value `scale_out r code / m`. The gradient is that of the
    line through the points (T_k, k), 0 beyond them. r, a buffer, is the range of least squared error; gaps and scales
    start at 1, so that one learning rate suits every bit-width and range.
    """

    MIN_GAP = 1e-3
    reach: Tensor

    def __init__(self, bits: int, signed: bool = True) -> None:
        super().__init__(bits, signed)
        self.scale_in, self.scale_out = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.register_buffer("reach", torch.ones(()))
        self.resize()

    def resize(self) -> None:
        self.gaps = nn.Parameter(self.scale_in.detach().new_ones(self.high))

    def start_from(self, observed: Observed) -> None:
        super().start_from(observed)
        self.reach.fill_(reach_of(observed, self.bits))

    def forward(self, x: Tensor) -> Tensor:
        self.require_fitted()
        sign = self.sign(x)
        value = self._scaled(sign * x)
        codes = straight_through(self._codes(value), self._line(value))
        return sign * (self.scale_out * self.reach / self.high * codes)

    def _scaled(self, magnitude: Tensor) -> Tensor:
        """v, in units of codes."""
        return self.scale_in * (self.high / self.reach) * magnitude

    def _line(self, value: Tensor) -> Tensor:
        """The piecewise linear function through (T_k, k), with its gradient to value and gaps."""
        gaps = self.gaps.clamp(min=self.MIN_GAP)
        # Not cumsum, for which CUDA has no deterministic kernel.
        sums = (gaps * gaps.new_ones(self.high, self.high).tril()).sum(1)
        ends = torch.cat([gaps.new_zeros(1), sums])
        with torch.no_grad():
            piece = (torch.bucketize(value.contiguous(), ends) - 1).clamp_(0, self.high - 1)
            inside = (value > 0) & (value <= ends[-1])
        flat = piece.reshape(-1)
        start, gap = (each.index_select(0, flat).view(value.shape) for each in (ends[:-1], gaps))
        line = piece + (value - start) / gap
        return torch.where(inside, line, self.high * (value.detach() > 0).to(line.dtype))

    @torch.no_grad()
    def _codes(self, value: Tensor) -> Tensor:
        gaps = self.gaps.clamp(min=self.MIN_GAP)
        found = torch.bucketize(value.detach().contiguous(), gaps.cumsum(0) - gaps / 2).to(value.dtype)
        return torch.where(value.isnan(), value, found)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        sign = self.sign(x)
        return (sign * self._codes(self._scaled(sign * x))).to(torch.int16)

    @torch.no_grad()
    def project(self) -> None:
        """Keep gaps and scales above 0; call after the optimizer has moved them."""
        for each in (self.gaps, self.scale_in, self.scale_out):
            each.clamp_(min=self.MIN_GAP)

    def at_bits(self, bits: int, scale: KeepScale) -> ActivationQuantizer:
        """The same line over the same range (keep_range), or over one with the same mean step (keep_step)."""
        if bits == self.bits:
            return self
        other = type(self)(bits, self.signed)
        ends = torch.cat([self.gaps.new_zeros(1), self.gaps.detach().clamp(min=self.MIN_GAP).cumsum(0)])
        places = torch.linspace(0, self.high, other.high + 1, device=ends.device)
        piece = places.floor().long().clamp_(max=self.high - 1)
        resampled = (ends[piece] + (places - piece) * (ends[piece + 1] - ends[piece])).diff()
        factor = 1.0 if scale == "keep_range" else other.high / self.high
        other.gaps = nn.Parameter(resampled * (other.high / self.high))
        other.scale_in = nn.Parameter(self.scale_in.detach().clone())
        other.scale_out = nn.Parameter(self.scale_out.detach().clone())
        other.reach, other.fitted = self.reach * factor, self.fitted
        return other.train(self.training)

    def described(self) -> str:
        return f"range={shown(self.scale_out * self.reach)}, {self.high} learned thresholds"
