"""The native passes of single methods, as harness/native.py has those that all share: its conventions hold here.

harness/native_dampening.c, native_kurtosis.c and native_freezing.c.
"""

import torch
from torch import Tensor

from harness.native import call, scratch_for, sizes_of


def dampening_value(weight: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """The sum of (q(w) - clip(w, s low, s high))^2, shape (), float64; codes from low to high."""
    value, groups = torch.empty((), dtype=torch.float64), step.numel()
    call("dampening_value", weight, *sizes_of(weight, groups), step, low, high, scratch_for(weight, groups), value)
    return value


def dampening_gradient(weight: Tensor, step: Tensor, low: float, high: float, factor: float) -> Tensor:
    """The gradient of factor / 2 times that sum, q(w) and s held; like the weight."""
    out = torch.empty_like(weight)
    call("dampening_gradient", weight, out, *sizes_of(weight, step.numel()), step, low, high, factor)
    return out


def moments(weight: Tensor) -> tuple[float, float, float, float]:
    """The mean of a whole weight, and the sums of (w - mean) to the powers 2, 3 and 4."""
    out = torch.empty(4, dtype=torch.float64)
    call("moments", weight, weight.numel(), scratch_for(weight, 1), out)
    mean, second, third, fourth = out.tolist()
    return mean, second, third, fourth


def standardized_cubic(
    weight: Tensor, mean: float, deviation: float, cubic: float, linear: float, constant: float
) -> Tensor:
    """`cubic z^3 + linear z + constant` of z = (w - mean) / deviation; like the weight."""
    out = torch.empty_like(weight)
    call("standardized_cubic", weight, out, weight.numel(), mean, deviation, cubic, linear, constant)
    return out


# Freezing: over a weight some of which is held at codes of its own. held: bool, code: int8, both like the weight.


def hold(others: Tensor, held: Tensor, code: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
    """`step * code` where held, fp32 `others` elsewhere; `out` may be `others` itself."""
    out = torch.empty_like(others) if out is None else out
    call("hold", others, held, code, out, *sizes_of(others, step.numel()), step)
    return out


def hold_backward(grad: Tensor, held: Tensor, code: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of `others` and, fp64 (groups,), of the step, from `grad`, that of what `hold` gave."""
    out, sums = torch.empty_like(grad), torch.empty(groups, dtype=torch.float64)
    call("hold_backward", grad, held, code, out, *sizes_of(grad, groups), sums, scratch_for(grad, groups))
    return out, sums


def held_codes(weight: Tensor, held: Tensor, code: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """int8: the code where held, `round(weight / step)` in [low, high] elsewhere."""
    out = torch.empty_like(code)
    call("held_codes", weight, held, code, out, *sizes_of(weight, step.numel()), step, low, high)
    return out


def settle(
    codes: Tensor, average: Tensor, frequency: Tensor, held: Tensor, code: Tensor, momentum: float, limit: int
) -> None:
    """Move the fp32 averages towards the codes by `momentum`, then hold at round(average) what oscillates too often.

    That is where `frequency`, fp16, has bits of at least `limit`; what is held already stays as it is.
    """
    call("settle", codes, average, frequency, held, code, codes.numel(), momentum, limit)
