"""The passes over one weight, and over a batch of images, in C, for tensors on the CPU."""

import torch
from torch import Tensor

from harness.kernels import library

BLOCK = 4096  # as in harness/kernels/csrc/common.h

# A weight, fp32 (O, ...), is `groups` shares of equal size that have a step each: 1, or O. Tensors `peak` and `step`
# are fp32 with `groups` elements; what else is given is like the weight. Callers have asked `serves`. high: the
# largest code of a clipped range, -1 without clipping; slack: how far beyond it, in steps, still counts as inside.
# grad: fp32 or bf16.


def peaks(weight: Tensor, groups: int) -> Tensor:
    """max|w| of each group, (groups,)."""
    out = torch.empty(groups)
    library.call("peaks", weight, *sizes_of(weight, groups), scratch_for(weight, groups), out)
    return out


def quantize(weight: Tensor, step: Tensor, high: float, bf16: bool = False) -> Tensor:
    """The weight on the grid, `step * code`, in fp32 or rounded to bf16."""
    out = torch.empty_like(weight, dtype=torch.bfloat16 if bf16 else torch.float32)
    library.call("quantize", weight, out, *sizes_of(weight, step.numel()), step, high, bf16)
    return out


def quantize_backward(
    weight: Tensor,
    grad: Tensor,
    peak: Tensor,
    step: Tensor,
    high: float,
    slack: float,
    graph: bool,
    further: Tensor | None = None,
) -> Tensor:
    """The gradient of the weight from `grad`, that of the weight on the grid: straight-through.

    graph: whether the step, a multiple of the peak, takes part in the gradient; further: what else its gradient is
    made of, fp64 like it.
    """
    out, groups = torch.empty_like(weight), step.numel()
    sizes, scratch = sizes_of(weight, groups), scratch_for(weight, groups)
    rest = peak, step, high, slack, graph, further, 0, scratch
    library.call("quantize_backward", weight, grad, grad.dtype == torch.bfloat16, out, *sizes, *rest)
    return out


def learned_step_backward(
    weight: Tensor, grad: Tensor, step: Tensor, high: float, slack: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of the steps, (groups,), from `grad`, that of the weight on the grid."""
    out, pulls, groups = torch.empty_like(weight), torch.empty(step.numel()), step.numel()
    sizes, scratch = sizes_of(weight, groups), scratch_for(weight, groups)
    rest = 0, step, high, slack, 0, 0, pulls, scratch
    library.call("quantize_backward", weight, grad, grad.dtype == torch.bfloat16, out, *sizes, *rest)
    return out, pulls


def image_batch(
    images: Tensor,
    rows: Tensor | None,
    table: Tensor,
    formulas: Tensor,
    padding: int = 0,
    offsets: Tensor | None = None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """fp32 (B, C, H, W) from uint8 images (N, C, H, W): those at `rows`, int64 (B,), or all of them.

    table: fp32 (C, 256), what each value becomes. formulas: fp32 (C, 3), the largest value, mean and deviation that it
    was made of; where computing gives the same bits, nothing is looked up. offsets, mirrored: where in the image padded
    by `padding` zeros the crop of each begins, int64 (B, 2), and whether it is mirrored, bool (B,), as `crop_and_flip`
    takes them; both or neither. All dense, on the CPU. Raises IndexError for a row that is not there.
    """
    channels, height, width = images.shape[1:]
    count, places = (len(images), 0) if rows is None else (len(rows), rows.contiguous())
    out = torch.empty(count, channels, height, width)
    sizes = count, channels, height, width
    if library.call(
        "image_batch", images, len(images), places, *sizes, table, formulas, padding, offsets, mirrored, out
    ):
        assert rows is not None
        raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(images)} images")
    return out


def sizes_of(weight: Tensor, groups: int) -> tuple[int, int]:
    """How many groups, and the weights of each."""
    return groups, weight.numel() // groups


def scratch_for(weight: Tensor, groups: int) -> Tensor:
    """Three doubles per block of each group."""
    return torch.empty(3 * groups * -(-weight.numel() // groups // BLOCK), dtype=torch.float64)


def dampening_value(weight: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """The sum of (q(w) - clip(w, s low, s high))^2, shape (), float64; codes from low to high."""
    value, groups = torch.empty((), dtype=torch.float64), step.numel()
    library.call(
        "dampening_value", weight, *sizes_of(weight, groups), step, low, high, scratch_for(weight, groups), value
    )
    return value


def dampening_gradient(weight: Tensor, step: Tensor, low: float, high: float, factor: float) -> Tensor:
    """The gradient of factor / 2 times that sum, q(w) and s held; like the weight."""
    out = torch.empty_like(weight)
    library.call("dampening_gradient", weight, out, *sizes_of(weight, step.numel()), step, low, high, factor)
    return out


def moments(weight: Tensor) -> tuple[float, float, float, float]:
    """The mean of a whole weight, and the sums of (w - mean) to the powers 2, 3 and 4."""
    out = torch.empty(4, dtype=torch.float64)
    library.call("moments", weight, weight.numel(), scratch_for(weight, 1), out)
    mean, second, third, fourth = out.tolist()
    return mean, second, third, fourth


def standardized_cubic(
    weight: Tensor, mean: float, deviation: float, cubic: float, linear: float, constant: float
) -> Tensor:
    """`cubic z^3 + linear z + constant` of z = (w - mean) / deviation; like the weight."""
    out = torch.empty_like(weight)
    library.call("standardized_cubic", weight, out, weight.numel(), mean, deviation, cubic, linear, constant)
    return out


def on_grid(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`step * code`."""
    out = torch.empty_like(x)
    library.call("on_grid", x, out, *sizes_of(x, step.numel()), step, low, high)
    return out


def on_grid_backward(
    x: Tensor, grad: Tensor, step: Tensor, low: Tensor, high: Tensor, slack: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the input and of the steps, (groups,), from `grad`, that of `on_grid`."""
    out, pulls, sizes = torch.empty_like(x), torch.empty(step.numel()), sizes_of(x, step.numel())
    scratch = scratch_for(x, step.numel())
    library.call("on_grid_backward", x, grad, out, *sizes, step, low, high, slack, pulls, scratch)
    return out, pulls


# Freezing: over a weight some of which is held at codes of its own. held: bool, code: int8, both like the weight.


def hold(others: Tensor, held: Tensor, code: Tensor, step: Tensor, out: Tensor | None = None) -> Tensor:
    """`step * code` where held, fp32 `others` elsewhere; `out` may be `others` itself."""
    out = torch.empty_like(others) if out is None else out
    library.call("hold", others, held, code, out, *sizes_of(others, step.numel()), step)
    return out


def hold_backward(grad: Tensor, held: Tensor, code: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The gradients of `others` and, fp64 (groups,), of the step, from `grad`, that of what `hold` gave."""
    out, sums = torch.empty_like(grad), torch.empty(groups, dtype=torch.float64)
    library.call("hold_backward", grad, held, code, out, *sizes_of(grad, groups), sums, scratch_for(grad, groups))
    return out, sums


def held_codes(weight: Tensor, held: Tensor, code: Tensor, step: Tensor, low: float, high: float) -> Tensor:
    """int8: the code where held, `round(weight / step)` in [low, high] elsewhere."""
    out = torch.empty_like(code)
    library.call("held_codes", weight, held, code, out, *sizes_of(weight, step.numel()), step, low, high)
    return out


def settle(
    codes: Tensor, average: Tensor, frequency: Tensor, held: Tensor, code: Tensor, momentum: float, limit: int
) -> None:
    """Move the fp32 averages towards the codes by `momentum`, then hold at round(average) what oscillates too often.

    That is where `frequency`, fp16, has bits of at least `limit`; what is held already stays as it is.
    """
    library.call("settle", codes, average, frequency, held, code, codes.numel(), momentum, limit)
