"""What the tests of the native penalties share: weights, and a loss's value and gradient."""

from collections.abc import Callable

import torch
from passes_common import pass_of
from torch import Tensor

#: Odd sizes, one weight alone, and one of several blocks and threads.
SHAPES = [(1, 1), (5, 7), (3, 16), (6, 5, 3, 3), (9, 1, 1, 1), (31, 4099), (301, 170)]
MEMORY = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def normal(shape: tuple[int, ...], memory: str = "contiguous", seed: int = 0) -> Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return weight.to(memory_format=MEMORY[memory]) if weight.dim() == 4 else weight


def by_native_passes(loss: Tensor) -> bool:
    """Whether they computed this loss."""
    return pass_of(loss) == "ClosedForm"


def value_and_gradient(loss: Callable[[Tensor], Tensor], weight: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    leaf = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(factor * value, leaf)
    return value.detach(), gradient
