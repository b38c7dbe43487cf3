"""What the tests in test_quantizers_*.py share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.quantization import (
    ClippedQuantizer,
    CompandingQuantizer,
    LSQQuantizer,
    MaxAbsQuantizer,
    WeightQuantizer,
)

BITS = range(2, 9)


QUANTIZERS: list[Callable[[int], WeightQuantizer]] = [
    MaxAbsQuantizer,
    ClippedQuantizer,
    LSQQuantizer,
    lambda bits: MaxAbsQuantizer(bits, per_channel=True),
    lambda bits: ClippedQuantizer(bits, per_channel=True),
    lambda bits: LSQQuantizer(bits, per_channel=True),
    lambda bits: LSQQuantizer(bits, kind="full"),
    CompandingQuantizer,
    lambda bits: CompandingQuantizer(bits, per_channel=True),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lsq_at(step: float | Tensor, bits: int = 3, **kind: Any) -> LSQQuantizer:
    """A learned-step quantizer with this step."""
    quantizer = LSQQuantizer(bits, **kind)
    quantizer.learned_step, quantizer.fitted = nn.Parameter(torch.as_tensor(step)), True
    return quantizer


# Gradients


def backward(quantizer: WeightQuantizer, weight: Tensor, upstream: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    (quantizer(leaf) * upstream).sum().backward()
    assert leaf.grad is not None
    return leaf.grad
