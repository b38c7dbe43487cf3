"""What the tests in test_layers_*.py share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5, bias=False),
        nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)),
    )


def images() -> Tensor:
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


class Recording(nn.Module):
    """Applies a function, and remembers in which order and on what type it was called."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], calls: list[tuple[str, torch.dtype]]) -> None:
        super().__init__()
        self.name, self.function, self.calls = name, function, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, x.dtype))
        return self.function(x)
