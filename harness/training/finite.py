"""A loss, weight or gradient that is not finite ends the run, and the message names the layers.

On a CPU the loss is checked at each step, before non-finite values spread. On a GPU that would cost a synchronisation
per step, so there the loss of the epoch is checked. Weights and gradients are checked when an epoch ends, and when a
loss is not finite.
"""

import math

import torch
from torch import Tensor, nn

#: The largest number of layers that a message names.
_NAMED = 3


class TrainingError(RuntimeError):
    """Training diverged: a loss, a weight or a gradient is not finite."""


def check_loss(loss: float, when: str, model: nn.Module) -> None:
    """Raise TrainingError for a training loss that is not finite. when: "epoch 1, step 5"."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss became {loss} in {when}; {not_finite(model) or 'all weights are finite'}"
        )


def check_weights(when: str, model: nn.Module) -> None:
    """Raise TrainingError where a weight or a gradient is not finite. One pass over both, one synchronisation."""
    tensors = [
        each.detach() for parameter in model.parameters() for each in (parameter, parameter.grad) if each is not None
    ]
    if _finite(torch.stack([each.sum() for each in tensors])):
        return
    if found := not_finite(model):  # otherwise only a sum overflowed
        raise TrainingError(f"after {when}: {found}")


def check_gradients(norm: Tensor, when: str, model: nn.Module) -> None:
    """Raise TrainingError where a gradient is the reason that the norm of all, shape (), is not finite."""
    if not _finite(norm) and (found := not_finite(model)):
        raise TrainingError(f"in {when}: {found}")


def not_finite(model: nn.Module) -> str:
    """`not finite: weight of layer 'a', gradient of weight of layer 'b'`; "" where all weights and gradients are."""
    named = list(model.named_parameters())
    weights = [_called(name) for name, parameter in named if not _finite(parameter)]
    gradients = [
        f"gradient of {_called(name)}"
        for name, parameter in named
        if _called(name) not in weights and parameter.grad is not None and not _finite(parameter.grad)
    ]
    return f"not finite: {_listed([*weights, *gradients])}" if weights or gradients else ""


def _called(name: str) -> str:
    layer, _, own = name.rpartition(".")
    return f"{own} of layer {layer!r}" if layer else own


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _finite(values: Tensor) -> bool:
    return bool(values.detach().isfinite().all())
