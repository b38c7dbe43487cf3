"""What the tests of companding share: random curves, and the formulas number by number."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.quantization import CompandingQuantizer, WeightQuantizer


class Uniform(WeightQuantizer):
    """The uniform quantizer of a given step."""

    def __init__(self, bits: int, given: Tensor) -> None:
        super().__init__(bits)
        self.given = given

    def step(self, weight: Tensor) -> Tensor:
        return self.given


def logs(count: int = 16, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(bits: int, weight: Tensor, seed: int = 0, size: float = 1.0, **settings: Any) -> CompandingQuantizer:
    """Fitted to a weight, with a random curve; in the weight's precision."""
    quantizer = CompandingQuantizer(bits, **settings).fit(weight)
    if quantizer.log_slopes is not None:
        quantizer.log_slopes = nn.Parameter(logs(quantizer.intervals, seed, size).to(weight.dtype))
    return quantizer.to(weight.dtype)


def naive_knots(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets on [0, 1], by the formulas."""
    p = np.exp(theta) / np.exp(theta).sum()
    return p * len(theta), np.concatenate([[0.0], np.cumsum(p)])


def naive_compress(v: float, theta: np.ndarray) -> float:
    gamma, beta = naive_knots(theta)
    k = min(int(v * len(theta)), len(theta) - 1)
    return float(gamma[k] * (v - k / len(theta)) + beta[k])


def naive_expand(y: float, theta: np.ndarray) -> float:
    gamma, beta = naive_knots(theta)
    k = max(k for k in range(len(theta)) if k == 0 or beta[k] <= y)
    return float((y - beta[k]) / gamma[k] + k / len(theta))


def naive_quantize(x: float, reach: float, theta: np.ndarray, high: int) -> float:
    v = abs(x) / reach
    value = naive_expand(round(high * naive_compress(v, theta)) / high, theta) if v < 1 else 1.0
    return math.copysign(reach * value, x)
