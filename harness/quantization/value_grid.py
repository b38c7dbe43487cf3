"""The values that the weights of a layer may become, and which of them are next to a weight.

For deploy methods that round otherwise than to nearest: they choose among the same values as round-to-nearest.
"""

import torch
from torch import Tensor


class ValueGrid:
    """Values (1, L) for all weights, or (O, L) for each output channel, ascending: `WeightQuantizer.values`.

    Weights are (O, K), in the type of the values; K may differ from call to call.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values.contiguous()
        self._thresholds = (values[:, 1:] + values[:, :-1]).div_(2).contiguous()

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest value to each weight, (O, K); half-way between two of them, the lower one."""
        return self._at(self._count_below(self._thresholds, weight, right=False))

    def neighbours(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The values below and above each weight, (O, K) each; a weight on a value has that one below.

        Both are the outermost value where the weight is beyond it.
        """
        below = self._count_below(self.values, weight, right=True) - 1
        last = self.values.shape[1] - 1
        return self._at(below.clamp(0, last)), self._at((below + 1).clamp(0, last))

    def _count_below(self, bounds: Tensor, weight: Tensor, right: bool) -> Tensor:
        """How many of the bounds, (1 or O, M), are less than each weight, or not greater if `right`."""
        rows = weight.reshape(1, -1) if len(bounds) == 1 else weight
        return torch.searchsorted(bounds, rows.contiguous(), right=right).view(weight.shape)

    def _at(self, index: Tensor) -> Tensor:
        rows = index.reshape(1, -1) if len(self.values) == 1 else index
        return self.values.gather(1, rows).view(index.shape)
