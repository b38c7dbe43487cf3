"""The passes over one weight, and over a batch of images, in C, for tensors on the CPU."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.kernels import library

BLOCK = 4096  # as in harness/kernels/csrc/common.h
#: As in harness/kernels/csrc/companding.c; TABLES: bytes, at least what its tables take.
MOST_INTERVALS, MOST_PLACES, PARTS, TABLES = 64, 194, 32, 8192
SMALLEST = torch.finfo(torch.float32).tiny

# A weight, fp32 (O, ...), is `groups` shares of equal size that have a step each: 1, or O. Tensors `peak` and `step`
# are fp32 with `groups` elements; what else is given is like the weight. Callers have asked `serves`. high: the
# largest code of a clipped range, -1 without clipping; slack: how far beyond it, in steps, still counts as inside.


def peaks(weight: Tensor, groups: int) -> Tensor:
    """max|w| of each group, (groups,)."""
    out = torch.empty(groups)
    library.call("peaks", weight, *sizes_of(weight, groups), scratch_for(weight, groups), out)
    return out


def quantize(weight: Tensor, step: Tensor, high: float) -> Tensor:
    """The weight on the grid, `step * code`."""
    out = torch.empty_like(weight)
    library.call("quantize", weight, out, *sizes_of(weight, step.numel()), step, high)
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
    library.call("quantize_backward", weight, grad, out, *sizes, peak, step, high, slack, graph, further, 0, scratch)
    return out


def learned_step_backward(
    weight: Tensor, grad: Tensor, step: Tensor, high: float, slack: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of the steps, (groups,), from `grad`, that of the weight on the grid."""
    out, pulls, groups = torch.empty_like(weight), torch.empty(step.numel()), step.numel()
    sizes, scratch = sizes_of(weight, groups), scratch_for(weight, groups)
    library.call("quantize_backward", weight, grad, out, *sizes, 0, step, high, slack, 0, 0, pulls, scratch)
    return out, pulls


def image_batch(
    images: Tensor,
    rows: Tensor | None,
    table: Tensor,
    padding: int = 0,
    offsets: Tensor | None = None,
    mirrored: Tensor | None = None,
) -> Tensor:
    """fp32 (B, C, H, W) from uint8 images (N, C, H, W): those at `rows`, int64 (B,), or all of them.

    table: fp32 (C, 256), what each value becomes. offsets, mirrored: where in the image padded by `padding` zeros the
    crop of each begins, int64 (B, 2), and whether it is mirrored, bool (B,), as `crop_and_flip` takes them; both or
    neither. All dense, on the CPU. Raises IndexError for a row that is not there.
    """
    channels, height, width = images.shape[1:]
    if rows is not None and len(rows):
        low, high = (int(end) for end in rows.aminmax())
        if low < 0 or high >= len(images):
            raise IndexError(f"rows from {low} to {high} of {len(images)} images")
    count, places = (len(images), 0) if rows is None else (len(rows), rows.contiguous())
    out = torch.empty(count, channels, height, width)
    sizes = count, channels, height, width
    library.call("image_batch", images, places, *sizes, table, padding, offsets, mirrored, out)
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


def symmetry(weight: Tensor, fours: bool) -> tuple[float, Tensor] | None:
    """Of the weights paired by rank from both ends: the sum of |w + w'| over pairs, or, with `fours`, of |sum| over two
    neighbouring pairs, and the sign of that sum for each weight, int8, like it; 0 for one without a partner.

    None where a weight is not finite.
    """
    count = weight.numel()
    if count >= 2**31:
        return None
    signs, value = torch.empty_like(weight, dtype=torch.int8), torch.empty((), dtype=torch.float64)
    partial = torch.empty(-(-count // BLOCK), dtype=torch.float64)
    if fours:
        _by_buckets_of_both_signs(weight, signs, value, partial)
    else:
        half = 1 << min(16, max(4, (count // 16).bit_length()))
        room = torch.empty(36 * half, dtype=torch.uint8), torch.empty(2 * count, dtype=torch.int64)
        library.call("symmetry", weight, count, half, signs, value, *room, partial, torch.empty(partial.shape))
    return (float(value), signs) if math.isfinite(value) else None


def _by_buckets_of_both_signs(weight: Tensor, signs: Tensor, value: Tensor, partial: Tensor) -> None:
    """Sums of two neighbouring pairs; NaN where a weight is not finite."""
    count, largest = weight.numel(), float(peaks(weight, 1))
    if not math.isfinite(largest):
        value.fill_(math.nan)
        return
    half = 1 << min(15, max(4, (count // 32).bit_length()))
    scale = half / largest if largest > half * SMALLEST else 0.0  # of zeros all are in one bucket
    room, bucket_signs = torch.empty(12 * half + 1, dtype=torch.int32), torch.empty(2 * half, dtype=torch.int8)
    members = torch.empty(count, dtype=torch.int64)
    library.call("symmetry_fours", weight, count, half, scale, signs, value, room, bucket_signs, members, partial)


def signed_factor(signs: Tensor, factor: float) -> Tensor:
    """fp32, `factor` times int8 signs."""
    out = torch.empty_like(signs, dtype=torch.float32)
    library.call("signed_factor", signs, out, signs.numel(), factor)
    return out


@dataclass
class Companding:
    """Passes over a weight whose codes are indices of levels, with what they share: harness/kernels/csrc/companding.c.

    reach: the ranges, fp32 (groups,); in deviations of the weight if `normalize`. log_slopes: of the curve, fp32 (K,),
    K up to MOST_INTERVALS. high: the largest code; beyond: the largest size, in steps, that counts as inside.
    """

    reach: Tensor
    log_slopes: Tensor
    high: int
    beyond: float
    normalize: bool

    def _prepare(self, weight: Tensor) -> None:
        groups, self.scratch = self.reach.numel(), scratch_for(weight, self.reach.numel())
        self.scales, self.tables = torch.empty(4 * groups), torch.empty(TABLES, dtype=torch.uint8)
        sizes, curve = sizes_of(weight, groups), (self.log_slopes, self.log_slopes.numel(), self.high, self.beyond)
        rest = self.normalize, self.scales, self.tables, self.scratch
        library.call("compand_prepare", weight, *sizes, self.reach, *curve, *rest)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight at its levels."""
        self._prepare(weight)
        out, self.places = torch.empty_like(weight), torch.empty_like(weight, dtype=torch.uint8)
        sizes = sizes_of(weight, self.reach.numel())
        library.call("compand", weight, out, self.places, *sizes, self.scales, self.tables)
        return out

    def codes(self, weight: Tensor) -> Tensor:
        """The codes, int8, like the weight."""
        self._prepare(weight)
        out = torch.empty_like(weight, dtype=torch.int8)
        library.call("companded_codes", weight, out, *sizes_of(weight, self.reach.numel()), self.scales, self.tables)
        return out

    def backward(self, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """After `forward`: the gradients of the weight, of the ranges and of the logarithms of slopes."""
        out, ranges, slopes = torch.empty_like(weight), torch.empty_like(self.reach), torch.empty_like(self.log_slopes)
        sizes, given = sizes_of(weight, self.reach.numel()), (self.reach, self.normalize, self.scales, self.tables)
        rest = ranges, slopes, self.scratch, torch.empty(2 * PARTS * MOST_PLACES, dtype=torch.float64)
        library.call("compand_backward", weight, grad, out, self.places, *sizes, *given, *rest)
        return out, ranges, slopes


# Activations: an input fp32 of `groups` rows, each with its step and its lowest and highest code, all fp32 (groups,).


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
